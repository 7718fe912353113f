// The parts of the scheduler against plain ones, on random traffic. tests/kv and tests/scheduler hold them against
// their references in Python.
#include <algorithm>
#include <deque>
#include <map>
#include <set>
#include <vector>

#include "check.h"
#include "scheduler/free_queue.h"
#include "scheduler/future_use.h"
#include "scheduler/key_table.h"
#include "scheduler/partial_index.h"
#include "scheduler/prefix_queue.h"
#include "planner/random.h"

using namespace vllm_relational;

namespace {

uint64_t state = 7;
size_t below(size_t limit) { return static_cast<size_t>(next_random(state) % limit); }

// Keys of a path in a binary tree: equal keys mean equal paths up to there.
std::vector<uint64_t> random_path(size_t longest) {
  std::vector<uint64_t> keys;
  const size_t length = below(longest + 1);
  for (uint64_t node = 1; keys.size() < length; keys.push_back(node << 20)) node = 2 * node + below(2);
  return keys;
}

void table_is_a_map() {
  KeyTable table;
  std::map<uint64_t, uint32_t> map;
  for (uint32_t i = 0; i < 20000; ++i) {
    const uint64_t key = below(300) << 40;  // poor keys: long runs of slots
    if (map.contains(key) && below(2) == 0) {
      table.erase(key);
      map.erase(key);
    } else if (!map.contains(key)) {
      uint32_t& value = table.insert(key);
      CHECK(value == kNone);
      map[key] = value = i;
    }
    const uint64_t other = below(300) << 40;
    CHECK(table.find(other) == (map.contains(other) ? map[other] : kNone));
    CHECK(table.size() == map.size());
  }
}

struct Waiting {
  uint32_t request;
  std::vector<uint64_t> keys;
};

int64_t users(const std::deque<Waiting>& queue, uint64_t key) {
  return std::count_if(queue.begin(), queue.end(), [&](const Waiting& one) {
    return std::find(one.keys.begin(), one.keys.end(), key) != one.keys.end();
  });
}

size_t first_user(const std::deque<Waiting>& queue, uint64_t key) {
  size_t i = 0;
  while (i < queue.size() && std::find(queue[i].keys.begin(), queue[i].keys.end(), key) == queue[i].keys.end()) ++i;
  return i;
}

// Blocks of random keys come and go under a queue of waiting requests. After every step each block is in one place,
// and those that nobody needs go before all that somebody does, these farthest next use first.
void free_queue_hands_out_by_next_use() {
  constexpr size_t kBlocks = 40;
  std::vector<uint32_t> all(kBlocks);
  for (uint32_t i = 0; i < kBlocks; ++i) all[i] = i;
  FutureUse future;
  FreeQueue free(kBlocks, all, &future);
  std::deque<Waiting> queue;
  std::vector<uint32_t> held, unused;
  std::vector<uint64_t> key_of(kBlocks, 0);
  for (uint32_t i = 0; i < 64; ++i) unused.push_back(i);
  const auto cached = [](uint32_t) { return true; };
  for (int step = 0; step < 20000; ++step) {
    const size_t kind = below(5);
    if (kind == 0 && !unused.empty()) {
      Waiting one{unused.back(), random_path(5)};
      unused.pop_back();
      const bool front = below(3) == 0;
      future.add(one.request, one.keys, front);
      front ? queue.push_front(one) : queue.push_back(one);
    } else if (kind == 1 && !queue.empty()) {
      const size_t i = below(queue.size());
      future.remove(queue[i].request);
      unused.push_back(queue[i].request);
      queue.erase(queue.begin() + static_cast<std::ptrdiff_t>(i));
    } else if (kind == 2 && free.size() > 0) {
      std::set<size_t> later;  // of the needed blocks that stay
      std::vector<uint32_t> taken;
      free.take(1, cached, taken);
      const size_t mine = key_of[taken[0]] == 0 ? queue.size() : first_user(queue, key_of[taken[0]]);
      for (const uint32_t id : free.all()) later.insert(key_of[id] == 0 ? queue.size() : first_user(queue, key_of[id]));
      CHECK(later.empty() || mine >= *later.rbegin());
      held.push_back(taken[0]);
      key_of[taken[0]] = 0;
    } else if (kind == 3 && !held.empty()) {
      const std::vector<uint64_t> path = random_path(5);
      const uint32_t id = held.back();
      held.pop_back();
      key_of[id] = path.empty() ? 0 : path.back();
      if (path.empty()) {
        free.prepend(std::vector<uint32_t>{id});
      } else {
        free.append(std::vector<FreedBlock>{{id, true, key_of[id]}});
      }
    } else if (kind == 4 && free.size() > 0) {
      const std::vector<uint32_t> ids = free.all();
      held.push_back(ids[below(ids.size())]);
      free.remove(held.back());
      key_of[held.back()] = 0;
    }
    const std::vector<uint32_t> ids = free.all();
    std::set<uint32_t> places(ids.begin(), ids.end());
    CHECK(places.size() == ids.size() && ids.size() == free.size() && ids.size() + held.size() == kBlocks);
    for (const uint32_t id : held) CHECK(!places.contains(id) && !free.is_free(id));
    const std::vector<uint64_t> path = random_path(5);
    if (!path.empty()) CHECK(future.count(path.back()) == users(queue, path.back()));
  }
  CHECK(free.evictions()[FreeQueue::kRanked] > 0 && free.evictions()[FreeQueue::kIdle] > 0);
}

size_t shared(const std::vector<uint64_t>& one, const std::vector<uint64_t>& other) {
  const auto ends = std::mismatch(one.begin(), one.end(), other.begin(), other.end());
  return static_cast<size_t>(ends.first - one.begin());
}

// The next request shares as much with the last one as any that waits.
void prefix_queue_stays_under_the_last_prefix() {
  PrefixQueue queue;
  std::map<uint32_t, std::vector<uint64_t>> waiting;
  std::vector<uint64_t> last;
  uint32_t number = 0;
  for (int step = 0; step < 20000; ++step) {
    const size_t kind = below(5);
    if (kind < 2) {
      waiting[number] = random_path(6);
      queue.add(number, waiting[number], below(4) == 0);
      ++number;
    } else if (kind < 4 && !waiting.empty()) {
      const uint32_t next = queue.first();
      size_t most = 0;
      for (const auto& [_, keys] : waiting) most = std::max(most, shared(last, keys));
      CHECK(waiting.contains(next) && shared(last, waiting[next]) == most);
      last = waiting[next];
      queue.take(next);
      waiting.erase(next);
    } else if (!waiting.empty()) {
      const auto gone = std::next(waiting.begin(), static_cast<std::ptrdiff_t>(below(waiting.size())));
      queue.remove(gone->first);
      waiting.erase(gone);
    }
    CHECK(queue.size() == waiting.size() && queue.all().size() == waiting.size());
  }
}

void partial_index_finds_the_longest() {
  constexpr size_t kBlocks = 30, kSize = 4;
  PartialIndex index(kBlocks, kSize);
  struct Place {
    PrefixHash prefix;
    std::vector<int32_t> tokens;
  };
  std::map<uint32_t, Place> held;
  const auto random_prefix = [] { return PrefixHash{1 + below(3), 0, 0, below(2)}; };  // some differ in the end only
  const auto random_tokens = [](size_t count) {
    std::vector<int32_t> tokens(count);
    for (int32_t& token : tokens) token = static_cast<int32_t>(below(3));
    return tokens;
  };
  for (int step = 0; step < 20000; ++step) {
    const auto block = static_cast<uint32_t>(below(kBlocks));
    if (below(3) > 0) {
      const Place place{random_prefix(), random_tokens(kSize)};
      index.add(place.prefix, place.tokens, block);
      held.erase(block);
      if (index.holds(block)) held[block] = place;
      const bool other = std::any_of(held.begin(), held.end(), [&](const auto& one) {
        return one.second.prefix[0] == place.prefix[0] && one.second.prefix != place.prefix;
      });
      CHECK(index.holds(block) != other);
    } else {
      index.remove(block);
      held.erase(block);
    }
    const PrefixHash prefix = random_prefix();
    const std::vector<int32_t> query = random_tokens(below(kSize + 1));
    size_t most = 0;
    for (const auto& [_, place] : held) {
      const auto end = std::mismatch(query.begin(), query.end(), place.tokens.begin()).first;
      if (place.prefix == prefix) most = std::max(most, static_cast<size_t>(end - query.begin()));
    }
    const auto [best, length] = index.longest(prefix, query);
    CHECK(length == most && (length == 0 || held.at(best).prefix == prefix));
    CHECK(index.size() == held.size());
  }
  index.clear();
  CHECK(index.size() == 0 && index.num_prefixes() == 0);
}

}  // namespace

int main() {
  table_is_a_map();
  free_queue_hands_out_by_next_use();
  prefix_queue_stays_under_the_last_prefix();
  partial_index_finds_the_longest();
}
