// The functions of the operator onebyone::winograd_conv2d: see winograd.py.
#include "winograd.h"

namespace {
thread_local onebyone::Buffer scratch_of_thread;
}

extern "C" int64_t onebyone_panel() { return onebyone::PANEL; }

// returns 0, or 1 if there is not enough memory for the blocks
extern "C" int onebyone_winograd(const float* image, const float* weight, const float* bias, float* result,
                                 const int64_t* sizes, int relu, int max_pool, int threads) {
  const onebyone::WinogradJob j{sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5], sizes[6], relu, max_pool, threads};
  const onebyone::WinogradBlocks blocks(j);
  float* scratch = scratch_of_thread.of(blocks.floats(j));
  if (!scratch) return 1;
  onebyone::run_parallel(threads, [&](const onebyone::Team& team) {
    onebyone::winograd(j, blocks, team, image, weight, bias, nullptr, result, scratch);
  });
  return 0;
}
