// Poisoned zones between the parts of a step's scratch, in a test build under AddressSanitizer. A write beyond one part is
// then reported where it happens, although it would still be inside the scratch. In other builds the zones are empty.
#pragma once
#include <cstdint>
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace onebyone {
#if defined(__SANITIZE_ADDRESS__)
constexpr int64_t RED_ZONE = 64;
inline void poison(const float* begin, int64_t floats) { __asan_poison_memory_region(begin, floats * sizeof(float)); }
inline void unpoison(const float* begin, int64_t floats) { __asan_unpoison_memory_region(begin, floats * sizeof(float)); }
#else
constexpr int64_t RED_ZONE = 0;
inline void poison(const float*, int64_t) {}
inline void unpoison(const float*, int64_t) {}
#endif

// the size of a part including the zone behind it
inline int64_t with_red_zone(int64_t floats) { return floats ? floats + RED_ZONE : 0; }

// the next part of the scratch, of a size that includes its zone; advances `scratch` beyond it
inline float* take(float*& scratch, int64_t floats_with_zone) {
  float* part = scratch;
  scratch += floats_with_zone;
  if (floats_with_zone) poison(scratch - RED_ZONE, RED_ZONE);
  return part;
}
}  // namespace onebyone
