#include "workers.h"

#include <atomic>
#include <stdexcept>
#include <string>
#include <vector>

#include "check.h"

using namespace vllm_relational;

namespace {

struct Interrupted {};

void every_body_runs_once() {
  for (const int num_threads : {0, 1, 2, 3, 7}) {
    Workers workers(num_threads);
    for (const size_t count : {0, 1, 2, 5, 1000}) {
      std::vector<std::atomic<int>> runs(count);
      workers.for_each(count, [&](size_t i) { ++runs[i]; });
      for (const auto& run : runs) CHECK(run == 1);
    }
  }
}

// On the thread of the body: no two threads count for the same i.
void a_body_may_have_a_loop_of_its_own() {
  for (const int num_threads : {1, 2, 7}) {
    Workers workers(num_threads);
    std::vector<int> runs(20, 0);
    workers.for_each(runs.size(), [&](size_t i) {
      workers.for_each(100, [&](size_t) { ++runs[i]; });
    });
    for (const int count : runs) CHECK(count == 100);
    workers.for_each(runs.size(), [&](size_t i) { ++runs[i]; });
    for (const int count : runs) CHECK(count == 101);
  }
}

std::string message_of(Workers& workers, size_t count, const std::function<void(size_t)>& body) {
  try {
    workers.for_each(count, body);
  } catch (const std::runtime_error& error) {
    return error.what();
  }
  return "none";
}

void what_a_body_throws_reaches_the_caller() {
  for (const int num_threads : {1, 2, 7}) {
    for (const size_t bad : {0, 1, 50, 99}) {
      Workers workers(num_threads);
      const auto body = [&](size_t i) {
        if (i == bad) throw std::runtime_error("body " + std::to_string(i));
      };
      CHECK(message_of(workers, 100, body) == "body " + std::to_string(bad));
    }
  }
}

void what_an_inner_body_throws_reaches_the_caller() {
  for (const int num_threads : {1, 2, 7}) {
    Workers workers(num_threads);
    const auto inner = [](size_t i) {
      if (i == 5) throw std::runtime_error("inner body");
    };
    CHECK(message_of(workers, 100, [&](size_t) { workers.for_each(10, inner); }) == "inner body");
  }
}

void all_bodies_may_throw() {
  Workers workers(4);
  CHECK(message_of(workers, 1000, [](size_t) { throw std::runtime_error("some"); }) == "some");
}

// The other threads' bodies see that the search is over at their next check.
void one_failure_ends_the_others() {
  Workers workers(3);
  const auto body = [&](size_t i) {
    if (i == 2) throw std::runtime_error("third");
    for (;;) workers.check();
  };
  CHECK(message_of(workers, 3, body) == "third");
}

// Calls of the interrupt, of which the third throws.
struct ThirdCallThrows {
  int calls = 0;
  std::function<void()> function() {
    return [this] {
      if (++calls == 3) throw Interrupted();
    };
  }
};

void run_until_interrupted(Workers& workers, size_t count, const std::function<void(size_t)>& body) {
  try {
    workers.for_each(count, body);
  } catch (const Interrupted&) {
    return;
  }
  CHECK(!"interrupted");
}

// Without the interrupt neither would end.
void interrupts_end_a_loop() {
  for (const int num_threads : {1, 2, 3, 7}) {
    ThirdCallThrows interrupt;
    Workers workers(num_threads, interrupt.function());
    run_until_interrupted(workers, 7, [&](size_t) {
      for (;;) workers.check();
    });
    CHECK(interrupt.calls == 3);
  }
}

void the_caller_listens_after_its_own_work() {
  const std::thread::id caller = std::this_thread::get_id();
  ThirdCallThrows interrupt;
  Workers workers(2, interrupt.function());
  std::atomic<bool> other_runs{false};
  run_until_interrupted(workers, 2, [&](size_t) {
    if (std::this_thread::get_id() == caller) {
      while (!other_runs) std::this_thread::yield();
      return;
    }
    other_runs = true;
    for (;;) workers.check();
  });
  CHECK(interrupt.calls == 3);
}

void interrupts_come_on_the_callers_thread() {
  const std::thread::id caller = std::this_thread::get_id();
  std::atomic<int> calls{0}, elsewhere{0};
  Workers workers(3, [&] {
    ++calls;
    if (std::this_thread::get_id() != caller) ++elsewhere;
  });
  workers.for_each(30, [&](size_t) {
    while (calls < 3) workers.check();
  });
  CHECK(calls >= 3);
  CHECK(elsewhere == 0);
}

}  // namespace

int main() {
  every_body_runs_once();
  a_body_may_have_a_loop_of_its_own();
  what_an_inner_body_throws_reaches_the_caller();
  what_a_body_throws_reaches_the_caller();
  all_bodies_may_throw();
  one_failure_ends_the_others();
  interrupts_end_a_loop();
  the_caller_listens_after_its_own_work();
  interrupts_come_on_the_callers_thread();
  return 0;
}
