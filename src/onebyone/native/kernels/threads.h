// The threads of a run and how they share work. They are OpenMP's, which are PyTorch's too; where ThreadSanitizer watches,
// they are plain threads, because it does not see the barriers of an OpenMP library that was built without it.
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
#error "clang brings an OpenMP of its own, whose threads would contend with PyTorch's"
#endif

namespace onebyone {
// a test build (ONEBYONE_DELAYS) holds threads up at random where they meet, for up to 100 µs: a missing barrier then shows
inline void held_up() {
#if defined(ONEBYONE_DELAYS)
  static thread_local uint32_t state = 2463534242u ^ (uint32_t)(uintptr_t)&state;
  state ^= state << 13, state ^= state >> 17, state ^= state << 5;
  if (state % 4 == 0) usleep(state / 4 % 100);
#endif
}

// the threads that share a piece of work: each does a run of it, and waits for the others
struct Team {
  int64_t me, size;
#if defined(__SANITIZE_THREAD__)
  pthread_barrier_t* barrier = nullptr;
#endif
  int64_t begin(int64_t n, int64_t behind = 0) const {
    const int64_t t = me + behind;
    return n / size * t + std::min(t, n % size);
  }
  template <class Work>
  void share(int64_t n, const Work& work) const {
    for (int64_t i = begin(n), end = begin(n, 1); i < end; i++) work(i);
    wait();
  }
  // the same, each taking the next as soon as it is done with one; the team is all threads of the run
  template <class Work>
  void share_in_turn(int64_t n, const Work& work) const {
#if defined(__SANITIZE_THREAD__)
    share(n, work);
#else
    held_up();
#pragma omp for schedule(dynamic)
    for (int64_t i = 0; i < n; i++) work(i);
    held_up();
#endif
  }
  void wait() const {
    if (size <= 1) return;
    held_up();
#if defined(__SANITIZE_THREAD__)
    pthread_barrier_wait(barrier);
#else
#pragma omp barrier
#endif
    held_up();
  }
};

// `work`, by as many threads at once; there may be fewer than were asked for (OMP_THREAD_LIMIT)
template <class Work>
inline void by_threads(int asked, const Work& work) {
#if defined(__SANITIZE_THREAD__)
  pthread_barrier_t barrier;
  pthread_barrier_init(&barrier, nullptr, asked);
  std::vector<std::thread> others;
  for (int t = 1; t < asked; t++) others.emplace_back([&, t] { work(Team{t, asked, &barrier}); });
  work(Team{0, asked, &barrier});
  for (auto& other : others) other.join();
  pthread_barrier_destroy(&barrier);
#else
#pragma omp parallel num_threads(asked)
  work(Team{omp_get_thread_num(), omp_get_num_threads()});
#endif
}
}  // namespace onebyone
