// A network as a list of steps on channels-last maps, run in one parallel region: see onebyone/native/lowering.py
#include "strassen.h"
#include "transformer.h"
#include "winograd.h"

#include <chrono>

#ifdef __linux__
#include <sys/mman.h>
#endif

using namespace onebyone;

namespace {
enum Kind {
  INPUT, CONVOLUTION, WINOGRAD, DEPTHWISE, MAX_POOL, MEAN, ELEMENTWISE, LINEAR, LAYER_NORM, ATTENTION, ROWS_OF, TURNED
};

Job job_of(const Step& s, int threads) {
  return {s.samples, s.height, s.width, s.channels, s.outputs, s.pad_h, s.pad_w, s.activation == RELU, (int)s.pool, threads};
}
}  // namespace

extern "C" int64_t onebyone_panel() { return PANEL; }
extern "C" int64_t onebyone_step_bytes() { return sizeof(Step); }
extern "C" int64_t onebyone_lanes() { return LANES; }

// ask for pages of 2 MiB before memory is written: weights are read end to end, a walk through the tables every 4 KiB
extern "C" void onebyone_large_pages(void* begin, int64_t bytes) {
#ifdef __linux__
  madvise(begin, bytes, MADV_HUGEPAGE);  // it may be declined: nothing depends on it
#endif
}

// floats that a step needs besides its maps, run by that many threads
static int64_t scratch_of(const Step& s, int threads) {
  switch (s.kind) {
    case LINEAR: return linear_scratch(s, threads);
    case ATTENTION: return attention_scratch(s, threads);
    case MEAN: return mean_scratch(s, threads);
    case WINOGRAD: {
      const Job j = job_of(s, threads);
      return Blocks(j).floats(j);
    }
    default: return 0;
  }
}

// the most that any number of threads needs: there may be fewer than were asked for (OMP_THREAD_LIMIT)
extern "C" int64_t onebyone_scratch(const Step* step, int threads) {
  int64_t most = 0;
  for (int n = 1; n <= threads; n++) most = std::max(most, scratch_of(*step, n));
  return most;
}

// floats by which the parts of a linear step, run by that many threads, would write beyond their scratch: 0, or a fault
extern "C" int64_t onebyone_scratch_missing(const Step* step, int threads) {
  return linear_scratch_missing(*step, threads);
}

static void run_step(const Step& s, const float* zeros, const Team& team) {
  switch (s.kind) {
    case INPUT: laid_channels_last(s, team); break;
    case CONVOLUTION: convolution(s, zeros, team); break;
    case WINOGRAD: {
      const Job j = job_of(s, team.size);
      winograd(j, Blocks(j), team, s.x, s.weight, s.bias, s.y, s.scratch);
      break;
    }
    case DEPTHWISE: depthwise(s, zeros, team); break;
    case MAX_POOL: max_pool(s, team); break;
    case MEAN: mean(s, team); break;
    case ELEMENTWISE: elementwise(s, team); break;
    case LINEAR: linear(s, team); break;
    case LAYER_NORM: layer_norm(s, team); break;
    case ATTENTION: attention(s, team); break;
    case ROWS_OF: rows(s, team); break;
    case TURNED: turned(s, team); break;
  }
  if (ZONE) {  // its forbidden zones end with it
    if (!team.me) allow(s.scratch, scratch_of(s, team.size));
    team.wait();
  }
}

static double seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

#if defined(__SANITIZE_ADDRESS__)
extern "C" void onebyone_forbid(const float* begin, int64_t floats) { forbid(begin, floats); }
#endif

// all steps, one after the other; `ended`, where it is wanted, gets the time at which each was done, in seconds
extern "C" void onebyone_run(const Step* steps, int64_t count, const float* zeros, int asked, double* ended) {
  by_threads(asked, [&](const Team& team) {
    for (int64_t i = 0; i < count; i++) {
      run_step(steps[i], zeros, team);
      if (ended && !team.me) ended[i] = seconds();
    }
  });
}
