// The threads that a search runs on, and the way to stop it.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace vllm_relational {

// Made and used by one thread, the caller's. A for_each inside a body of its own runs on the thread of that body alone.
class Workers {
 public:
  // num_threads: 0 for as many as the machine has. interrupt: called on the caller's thread some fifty times a second
  // while a search runs; what it throws ends the search and reaches the caller.
  explicit Workers(int num_threads = 0, std::function<void()> interrupt = {});

  // Calls body(i) once for every i below count, on all threads, and returns when all are done. The first exception of
  // a body or of the interrupt is rethrown here. A body that writes only what belongs to its i gives the same result
  // on any number of threads.
  void for_each(size_t count, const std::function<void(size_t)>& body);

  // For long loops, on any thread of the search: throws when it is to end.
  void check();

 private:
  using Clock = std::chrono::steady_clock;

  struct Stopped {};  // ends the other threads once one has failed

  void run_here(const std::function<void(size_t)>& body, size_t count);
  void run(const std::function<void(size_t)>& body, size_t count);
  void wait_for_others();
  void fail();

  size_t num_threads_;
  std::function<void()> interrupt_;
  std::thread::id caller_ = std::this_thread::get_id();
  Clock::time_point next_check_ = Clock::now();
  bool is_shared_ = false;  // a for_each is running on all threads

  std::atomic<size_t> next_{0};  // the next i to hand out
  std::atomic<bool> stop_{false};
  std::mutex lock_;  // guards what follows
  std::condition_variable finished_;
  size_t num_running_ = 0;
  std::exception_ptr failure_;
};

}  // namespace vllm_relational
