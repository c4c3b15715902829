// Forbidden zones between the parts of a step's scratch, in a test build under AddressSanitizer: what one part is too small
// for is reported where it is written, though it would still be memory of the step. In other builds they take no room.
#pragma once
#include <cstdint>
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace onebyone {
#if defined(__SANITIZE_ADDRESS__)
constexpr int64_t ZONE = 64;
inline void forbid(const float* begin, int64_t floats) { __asan_poison_memory_region(begin, floats * sizeof(float)); }
inline void allow(const float* begin, int64_t floats) { __asan_unpoison_memory_region(begin, floats * sizeof(float)); }
#else
constexpr int64_t ZONE = 0;
inline void forbid(const float*, int64_t) {}
inline void allow(const float*, int64_t) {}
#endif

// the floats of a part with the zone behind it
inline int64_t zoned(int64_t floats) { return floats ? floats + ZONE : 0; }

// the next part of scratch, which `scratch` then lies behind
inline float* take(float*& scratch, int64_t zoned_floats) {
  float* part = scratch;
  scratch += zoned_floats;
  if (zoned_floats) forbid(scratch - ZONE, ZONE);
  return part;
}
}  // namespace onebyone
