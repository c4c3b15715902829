// A network as a list of steps, run one after another in one parallel region. steps.h documents the steps, and
// onebyone/native/planner.py makes them.
#include "strassen.h"
#include "transformer.h"
#include "winograd.h"

#include <chrono>

#ifdef __linux__
#include <sys/mman.h>
#endif

using namespace onebyone;

namespace {
WinogradJob job_of(const WinogradStep& s, int threads) {
  return {s.samples, s.height, s.width, s.channels, s.out_channels, s.pad_h, s.pad_w, (int)s.relu, (int)s.max_pool, threads};
}
}  // namespace

extern "C" int64_t onebyone_panel() { return PANEL; }
extern "C" int64_t onebyone_step_bytes() { return sizeof(Step); }
extern "C" int64_t onebyone_lanes() { return LANES; }

// asks for pages of 2 MiB before the memory is written: weights are read from end to end, and a page table walk for every
// 4 KiB would slow that down. The system may decline
extern "C" void onebyone_advise_large_pages(void* begin, int64_t bytes) {
#ifdef __linux__
  madvise(begin, bytes, MADV_HUGEPAGE);
#endif
}

// the floats of scratch of a step that runs on that many threads
static int64_t scratch_floats(const Step& s, int threads) {
  switch (s.kind) {
    case LINEAR: return linear_scratch(s.linear, threads);
    case ATTENTION: return attention_scratch(s.attention, threads);
    case MEAN: return mean_scratch(s.mean, threads);
    case WINOGRAD: {
      const WinogradJob j = job_of(s.winograd, threads);
      return WinogradBlocks(j).floats(j);
    }
    default: return 0;
  }
}

// the maximum over all numbers of threads up to `threads`: fewer may run than were requested (OMP_THREAD_LIMIT)
extern "C" int64_t onebyone_scratch_floats(const Step* step, int threads) {
  int64_t most = 0;
  for (int n = 1; n <= threads; n++) most = std::max(most, scratch_floats(*step, n));
  return most;
}

// by how many floats a linear step on that many threads would write beyond its scratch; 0 unless there is a fault
extern "C" int64_t onebyone_scratch_overrun(const Step* step, int threads) {
  return linear_scratch_overrun(step->linear, threads);
}

static float* scratch_of(const Step& s) {
  switch (s.kind) {
    case LINEAR: return s.linear.scratch;
    case ATTENTION: return s.attention.scratch;
    case MEAN: return s.mean.scratch;
    case WINOGRAD: return s.winograd.scratch;
    default: return nullptr;
  }
}

static void run_step(const Step& step, const float* zeros, const Team& team) {
  switch (step.kind) {
    case INPUT: copy_input(step.input, team); break;
    case CONVOLUTION: convolution(step.convolution, zeros, team); break;
    case WINOGRAD: {
      const WinogradStep& s = step.winograd;
      const WinogradJob j = job_of(s, team.size);
      winograd(j, WinogradBlocks(j), team, s.input, s.weight, s.bias, s.addend, s.output, s.scratch);
      break;
    }
    case DEPTHWISE: depthwise(step.depthwise, zeros, team); break;
    case MAX_POOL: max_pool(step.max_pool, team); break;
    case MEAN: mean(step.mean, team); break;
    case ELEMENTWISE: elementwise(step.elementwise, team); break;
    case LINEAR: linear(step.linear, team); break;
    case LAYER_NORM: layer_norm(step.layer_norm, team); break;
    case ATTENTION: attention(step.attention, team); break;
    case GATHER: gather(step.gather, team); break;
    case TRANSPOSE: transpose(step.transpose, team); break;
  }
  if (RED_ZONE) {  // the zones of a step end with it
    if (!team.thread && scratch_of(step)) unpoison(scratch_of(step), scratch_floats(step, team.size));
    team.wait();
  }
}

static double seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

#if defined(__SANITIZE_ADDRESS__)
extern "C" void onebyone_poison(const float* begin, int64_t floats) { poison(begin, floats); }
#endif

// runs all steps; `end_times`, if it is not null, gets the time in seconds at which each of them ended
extern "C" void onebyone_run(const Step* steps, int64_t count, const float* zeros, int requested, double* end_times) {
  run_parallel(requested, [&](const Team& team) {
    for (int64_t i = 0; i < count; i++) {
      run_step(steps[i], zeros, team);
      if (end_times && !team.thread) end_times[i] = seconds();
    }
  });
}
