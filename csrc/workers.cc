#include "workers.h"

#include <algorithm>
#include <utility>

namespace vllm_relational {
namespace {

constexpr auto kBetweenChecks = std::chrono::milliseconds(20);

}  // namespace

Workers::Workers(int num_threads, std::function<void()> interrupt)
    : num_threads_(num_threads > 0 ? static_cast<size_t>(num_threads)
                                   : std::max<size_t>(std::thread::hardware_concurrency(), 1)),
      interrupt_(std::move(interrupt)) {}

void Workers::for_each(size_t count, const std::function<void(size_t)>& body) {
  const size_t num_threads = std::min(num_threads_, count);
  if (is_shared_ || num_threads < 2) return run_here(body, count);
  is_shared_ = true;
  next_ = 0;
  num_running_ = num_threads;
  std::vector<std::jthread> others;
  for (size_t t = 1; t < num_threads; ++t) others.emplace_back([&] { run(body, count); });
  run(body, count);
  wait_for_others();
  others.clear();  // joins
  is_shared_ = false;
  if (failure_) std::rethrow_exception(failure_);
}

void Workers::run_here(const std::function<void(size_t)>& body, size_t count) {
  for (size_t i = 0; i < count; ++i) {
    body(i);
    check();
  }
}

void Workers::run(const std::function<void(size_t)>& body, size_t count) {
  try {
    for (size_t i = next_++; i < count && !stop_; i = next_++) {
      body(i);
      check();
    }
  } catch (...) {
    fail();
  }
  const std::lock_guard hold(lock_);
  --num_running_;
  finished_.notify_all();
}

// The caller's own work is done: it goes on listening for interrupts.
void Workers::wait_for_others() {
  std::unique_lock hold(lock_);
  while (!finished_.wait_for(hold, kBetweenChecks, [&] { return num_running_ == 0; })) {
    if (stop_) continue;
    hold.unlock();
    try {
      check();
    } catch (...) {
      fail();
    }
    hold.lock();
  }
}

void Workers::fail() {
  const std::lock_guard hold(lock_);
  if (!failure_) failure_ = std::current_exception();
  stop_ = true;
}

void Workers::check() {
  if (stop_) throw Stopped();
  if (!interrupt_ || std::this_thread::get_id() != caller_) return;
  const auto now = Clock::now();
  if (now < next_check_) return;
  next_check_ = now + kBetweenChecks;
  interrupt_();
}

}  // namespace vllm_relational
