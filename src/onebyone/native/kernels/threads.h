// The threads of a run and how they share work. They are OpenMP threads, as PyTorch's are. Under ThreadSanitizer they are
// plain threads, because it does not see the barriers of an OpenMP library that was compiled without it.
#pragma once
#include <algorithm>
#include <cstdint>
#if defined(__SANITIZE_THREAD__)
#include <pthread.h>
#include <thread>
#include <vector>
#else
#include <omp.h>
#endif
#if defined(ONEBYONE_DELAYS)
#include <unistd.h>
#endif

#ifdef __clang__
#error "clang uses its own OpenMP library, whose threads would compete with PyTorch's"
#endif

namespace onebyone {
// a test build (ONEBYONE_DELAYS) delays threads at random around barriers, by up to 100 µs, to reveal missing barriers
inline void random_delay() {
#if defined(ONEBYONE_DELAYS)
  static thread_local uint32_t state = 2463534242u ^ (uint32_t)(uintptr_t)&state;
  state ^= state << 13, state ^= state >> 17, state ^= state << 5;
  if (state % 4 == 0) usleep(state / 4 % 100);
#endif
}

// one thread's view of the threads that run a step together
struct Team {
  int64_t thread, size;
#if defined(__SANITIZE_THREAD__)
  pthread_barrier_t* barrier = nullptr;
#endif
  // the units of n that this thread processes: [begin(n), end(n))
  int64_t begin(int64_t n) const { return start_of(thread, n); }
  int64_t end(int64_t n) const { return start_of(thread + 1, n); }
  int64_t start_of(int64_t t, int64_t n) const { return n / size * t + std::min(t, n % size); }

  // work(i) for each i below n: every thread takes a contiguous range; ends with a barrier
  template <class Work>
  void share(int64_t n, const Work& work) const {
    for (int64_t i = begin(n), last = end(n); i < last; i++) work(i);
    wait();
  }
  // the same with dynamic scheduling; the team must be all threads of the parallel region
  template <class Work>
  void share_dynamically(int64_t n, const Work& work) const {
#if defined(__SANITIZE_THREAD__)
    share(n, work);
#else
    random_delay();
#pragma omp for schedule(dynamic)
    for (int64_t i = 0; i < n; i++) work(i);
    random_delay();
#endif
  }
  // a barrier
  void wait() const {
    if (size <= 1) return;
    random_delay();
#if defined(__SANITIZE_THREAD__)
    pthread_barrier_wait(barrier);
#else
#pragma omp barrier
#endif
    random_delay();
  }
};

// work(team) on `requested` threads, or fewer (OMP_THREAD_LIMIT)
template <class Work>
inline void run_parallel(int requested, const Work& work) {
#if defined(__SANITIZE_THREAD__)
  pthread_barrier_t barrier;
  pthread_barrier_init(&barrier, nullptr, requested);
  std::vector<std::thread> others;
  for (int t = 1; t < requested; t++) others.emplace_back([&, t] { work(Team{t, requested, &barrier}); });
  work(Team{0, requested, &barrier});
  for (auto& other : others) other.join();
  pthread_barrier_destroy(&barrier);
#else
#pragma omp parallel num_threads(requested)
  work(Team{omp_get_thread_num(), omp_get_num_threads()});
#endif
}
}  // namespace onebyone
