// Which blocks the waiting requests still need, and how soon: kv/future_use.py explains it and is its reference.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "scheduler/key_table.h"

namespace vllm_relational {

// Requests are numbers that the caller gives out; blocks are keys that stand for a whole prefix. Two different blocks
// with one key would be taken for the same, which only shifts who is evicted.
class FutureUse {
 public:
  static constexpr int64_t kNever = INT64_MAX;

  // Told when blocks that it marked are needed later, sooner, or not at all any more.
  class Listener {
   public:
    virtual void next_use_changed(uint32_t mark, int64_t next_use) = 0;

   protected:
    ~Listener() = default;
  };

  // A request waits at the back of the queue, or at its front; `request` is not in use.
  void add(uint32_t request, std::span<const uint64_t> keys, bool front);

  // A request waits no longer.
  void remove(uint32_t request);

  // Place of the first request that holds the block, kNever if none does. Places rise towards the back.
  int64_t next_use(uint64_t key) const {
    const uint32_t entry = blocks_.find(key);
    return entry == kNone ? kNever : next_use_of(entry);
  }

  int64_t count(uint64_t key) const {
    const uint32_t entry = blocks_.find(key);
    return entry == kNone ? 0 : entries_[entry].count;
  }

  void prefetch(uint64_t key) const { blocks_.prefetch(key); }

  // Distinct blocks that somebody needs.
  size_t num_blocks() const { return blocks_.size(); }

  // For the free queue, which keeps one word per needed block: kNone at first.
  void set_listener(Listener* listener) { listener_ = listener; }
  uint32_t entry(uint64_t key) const { return blocks_.find(key); }
  int64_t next_use_of(uint32_t entry) const { return links_[entries_[entry].first].place; }
  uint32_t& mark(uint32_t entry) { return entries_[entry].mark; }

 private:
  // One user of one block. The users of a block are linked in the order of their places.
  struct Link {
    int64_t place;
    uint32_t entry;
    uint32_t before;
    uint32_t after;
  };

  struct Entry {
    uint64_t key;
    uint32_t first;
    uint32_t last;
    int64_t count;
    uint32_t mark;
  };

  uint32_t new_entry(uint64_t key);
  uint32_t new_link(uint32_t entry, int64_t place);
  void push_front(uint32_t link);
  void push_back(uint32_t link);
  void unlink(uint32_t link);
  void tell(uint32_t mark, int64_t next_use) const {
    if (mark != kNone && listener_ != nullptr) listener_->next_use_changed(mark, next_use);
  }

  KeyTable blocks_;
  std::vector<Entry> entries_;
  std::vector<Link> links_;
  std::vector<uint32_t> free_entries_;
  std::vector<uint32_t> free_links_;
  std::vector<std::vector<uint32_t>> requests_;  // by request: its links
  int64_t first_place_ = 0;
  int64_t next_place_ = 0;
  Listener* listener_ = nullptr;
};

}  // namespace vllm_relational
