// Threads that share the pieces of one stage after another.
//
// A stage is over when all its pieces are done; nobody waits for a thread that has taken none. So a
// thread that the system does not run (the machine is busy) delays nobody, where a barrier of
// OpenMP would wait for it, some 200 times a step. Idle threads spin for a moment, then sleep.
#pragma once
#include <atomic>
#include <cstdint>
#include <mutex>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <immintrin.h>

namespace {

// Asks Linux (6.12 and later; others ignore it) for longer slices than the default for the calling
// thread. Its share of the CPU stays the same, but a thread that wakes up for a moment, as those
// that carry requests and tokens do, need not wait until a slice of arithmetic is over.
inline void give_way() {
#ifdef SYS_sched_setattr
  struct {
    uint32_t size, policy;
    uint64_t flags;
    int32_t nice;
    uint32_t priority;
    uint64_t runtime, deadline, period;
  } attributes = {};
  if (syscall(SYS_sched_getattr, 0, &attributes, sizeof attributes, 0)) return;
  attributes.runtime = 20'000'000;  // ns
  syscall(SYS_sched_setattr, 0, &attributes, 0);  // refused: as it was before
#endif
}

class Pool {
 public:
  typedef void (*Work)(void* context, int64_t begin, int64_t end, int thread);

  // Does pieces [0, count) in shares; false, and nothing done, when others use the pool just now.
  bool run(Work work, void* context, int64_t count, int64_t share, int threads) {
    std::unique_lock<std::mutex> mine(busy_, std::try_to_lock);
    if (!mine.owns_lock()) return false;
    static thread_local bool asked = false;
    if (!asked) give_way();
    asked = true;
    grow(threads - 1);
    work_.store(work, std::memory_order_relaxed);
    context_.store(context, std::memory_order_relaxed);
    count_.store(count, std::memory_order_relaxed);
    share_.store(share, std::memory_order_relaxed);
    limit_.store(threads, std::memory_order_relaxed);
    done_.store(0, std::memory_order_relaxed);
    stage_++;
    claim_.store(stage_ << 32, std::memory_order_seq_cst);
    if (asleep_.load(std::memory_order_seq_cst)) {
      pthread_mutex_lock(&door_);
      pthread_cond_broadcast(&bell_);
      pthread_mutex_unlock(&door_);
    }
    take(0);
    for (int turns = 0; done_.load(std::memory_order_acquire) < count; turns++) {
      if (turns < 4000) _mm_pause();
      else sched_yield();
    }
    claim_.store(stage_ << 32 | CLOSED, std::memory_order_seq_cst);
    return true;
  }

 private:
  static constexpr uint64_t CLOSED = 0xffffffff;

  // What is claimed carries the number of its stage: a claim succeeds only in the stage whose work
  // was read before, as that is overwritten in closed stages only.
  void take(int thread) {
    uint64_t now = claim_.load(std::memory_order_acquire);
    for (;;) {
      Work work = work_.load(std::memory_order_relaxed);
      void* context = context_.load(std::memory_order_relaxed);
      int64_t count = count_.load(std::memory_order_relaxed);
      int64_t share = share_.load(std::memory_order_relaxed);
      int64_t at = now & CLOSED;
      if (at >= count || at == (int64_t)CLOSED) return;
      if (!claim_.compare_exchange_weak(now, now + share, std::memory_order_acq_rel)) continue;
      int64_t end = at + share < count ? at + share : count;
      work(context, at, end, thread);
      done_.fetch_add(end - at, std::memory_order_release);
      now = claim_.load(std::memory_order_acquire);
    }
  }

  bool open(int thread) {
    return (int64_t)(claim_.load(std::memory_order_seq_cst) & CLOSED) <
               count_.load(std::memory_order_relaxed) &&
           thread < limit_.load(std::memory_order_relaxed);
  }

  void help(int thread) {
    for (;;) {
      for (int turns = 0; turns < 4000 && !open(thread); turns++) _mm_pause();
      if (!open(thread)) {
        pthread_mutex_lock(&door_);
        asleep_.fetch_add(1, std::memory_order_seq_cst);
        if (!open(thread)) pthread_cond_wait(&bell_, &door_);
        asleep_.fetch_sub(1, std::memory_order_seq_cst);
        pthread_mutex_unlock(&door_);
      }
      if (open(thread)) take(thread);
    }
  }

  static void* begin(void* pool) {
    give_way();
    Pool* self = (Pool*)pool;
    self->help(self->started_.fetch_add(1) + 1);
    return nullptr;
  }

  void grow(int helpers) {
    sigset_t all, before;
    while (helpers_ < helpers) {
      pthread_t thread;
      sigfillset(&all);  // signals are for the threads of Python
      pthread_sigmask(SIG_SETMASK, &all, &before);
      int failed = pthread_create(&thread, nullptr, begin, this);
      pthread_sigmask(SIG_SETMASK, &before, nullptr);
      if (failed) return;  // as many as there are will do
      pthread_detach(thread);
      helpers_++;
    }
  }

  std::mutex busy_;
  uint64_t stage_ = 0;
  int helpers_ = 0;
  std::atomic<int> started_{0}, asleep_{0}, limit_{0};
  std::atomic<uint64_t> claim_{CLOSED};
  std::atomic<int64_t> count_{0}, share_{1}, done_{0};
  std::atomic<Work> work_{nullptr};
  std::atomic<void*> context_{nullptr};
  pthread_mutex_t door_ = PTHREAD_MUTEX_INITIALIZER;
  pthread_cond_t bell_ = PTHREAD_COND_INITIALIZER;
};

// Never destroyed: its threads live as long as the process.
Pool& pool() {
  static Pool* one = new Pool;
  return *one;
}

// Calls f(begin, end, thread) for shares of [0, count).
template <class F>
void share_out(int64_t count, int64_t share, int threads, F f) {
  if (share < 1) share = 1;
  auto call = [](void* context, int64_t begin, int64_t end, int thread) {
    (*(F*)context)(begin, end, thread);
  };
  if (count <= share || threads < 2 || !pool().run(call, &f, count, share, threads))
    f(0, count, 0);
}

}  // namespace
