// What Python calls of winograd.h.
#include "winograd.h"

namespace {
thread_local onebyone::Buffer kept;
}

extern "C" int64_t onebyone_panel() { return onebyone::PANEL; }

// 0, or 1 where there is no memory for the blocks
extern "C" int onebyone_winograd(const float* image, const float* weight, const float* bias, float* result,
                                 const int64_t* sizes, int relu, int pool, int threads) {
  const onebyone::Job j{sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5], sizes[6], relu, pool, threads};
  const onebyone::Blocks blocks(j);
  float* scratch = kept.of(blocks.floats(j));
  if (!scratch) return 1;
  onebyone::by_threads(threads, [&](const onebyone::Team& team) {
    onebyone::winograd(j, blocks, team, image, weight, bias, result, scratch);
  });
  return 0;
}
