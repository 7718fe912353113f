// The free blocks of vLLM's pool in the order of an eviction policy: vllm_ext/scheduler/free_queue.py explains it and is its
// reference.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "scheduler/future_use.h"

namespace vllm_relational {

// A block that was freed: its number, and the key of its hash if it has one.
struct FreedBlock {
  uint32_t id;
  bool has_hash;
  uint64_t key;
};

// Blocks are in the list (nobody needs them) or in the heap (somebody does, by rank). With a FutureUse the rank is how
// late the next use is (`batch`), without one it is the age since the block was handed out (`fifo`).
class FreeQueue : private FutureUse::Listener {
 public:
  enum Reason { kUnhashed, kIdle, kRanked };

  // free: the blocks that are free, first to go first. future outlives this queue; null for fifo.
  FreeQueue(size_t num_blocks, std::span<const uint32_t> free, FutureUse* future);
  FreeQueue(const FreeQueue&) = delete;
  FreeQueue& operator=(const FreeQueue&) = delete;
  ~FreeQueue();

  size_t size() const { return size_; }
  bool is_free(uint32_t id) const { return blocks_[id].where != Where::kHeld; }
  const std::array<int64_t, 3>& evictions() const { return evictions_; }

  // The next n blocks; so many are free. has_hash(id): whether a block still has the hash that it was freed with.
  template <class HasHash>
  void take(size_t n, HasHash&& has_hash, std::vector<uint32_t>& taken) {
    const size_t first = taken.size();
    while (taken.size() < first + n) taken.push_back(take_one(has_hash));
    if (future_ == nullptr) note_inserted(std::span(taken).subspan(first));
  }

  // A block that is free is so no longer.
  void remove(uint32_t id);

  // Blocks without a hash are free, and the next to go, in this order.
  void prepend(std::span<const uint32_t> ids);

  // Blocks are free, the most recently used one last.
  void append(std::span<const FreedBlock> freed);

  // All free blocks: the list, then the heap by rank.
  std::vector<uint32_t> all() const;

 private:
  enum class Where : uint8_t { kHeld, kList, kHeap };

  static constexpr int64_t kIdleRank = INT64_MIN;

  struct Block {
    uint64_t key = 0;
    int64_t clock = 0;     // when it was freed last
    int64_t rank = 0;      // in the heap
    int64_t inserted = 0;  // when it was handed out last; fifo only
    uint32_t before = 0, after = 0;  // in the list, or among the kept blocks of the same key
    uint32_t heap_at = 0;
    Where where = Where::kHeld;
    bool has_hash = false;
    bool chained = false;  // hangs from its entry in the FutureUse
  };

  template <class HasHash>
  uint32_t take_one(HasHash&& has_hash) {
    for (;;) {
      if (!heap_.empty()) settle_top(has_hash);
      const uint32_t head = blocks_[end_].after;
      if (head == end_) return take_top();
      Block& block = blocks_[head];
      block.has_hash = block.has_hash && has_hash(head);
      const int64_t rank = rank_of(block);
      if (rank != kIdleRank) {
        unlink(head);
        keep(head, rank);
      } else if (block.has_hash && !heap_.empty() && is_idle_and_older(heap_.front(), block)) {
        return take_top();
      } else {
        return take_head(head);
      }
    }
  }

  // Until the top of the heap has the rank of now.
  template <class HasHash>
  void settle_top(HasHash&& has_hash) {
    for (;;) {
      const uint32_t top = heap_.front();
      Block& block = blocks_[top];
      block.has_hash = block.has_hash && has_hash(top);
      const int64_t rank = rank_of(block);
      if (rank == block.rank) return;
      unchain(top);
      rank_again(top, rank);
      if (rank != kIdleRank) chain(top);
    }
  }

  void next_use_changed(uint32_t mark, int64_t next_use) override;

  int64_t rank_of(const Block& block) const;
  bool is_idle_and_older(uint32_t top, const Block& head) const {
    return blocks_[top].rank == kIdleRank && blocks_[top].clock < head.clock;
  }
  uint32_t take_head(uint32_t id);
  uint32_t take_top();
  void note_inserted(std::span<const uint32_t> taken);

  void link_before(uint32_t id, uint32_t next);
  void unlink(uint32_t id);
  void chain(uint32_t id);
  void unchain(uint32_t id);
  void keep(uint32_t id, int64_t rank);
  void rank_again(uint32_t id, int64_t rank);
  bool is_before(uint32_t one, uint32_t other) const;
  void sift_up(size_t at);
  void sift_down(size_t at);
  void put(size_t at, uint32_t id) {
    heap_[at] = id;
    blocks_[id].heap_at = static_cast<uint32_t>(at);
  }
  void drop_from_heap(uint32_t id);

  FutureUse* future_;
  std::vector<Block> blocks_;  // the last one closes the list
  uint32_t end_;
  std::vector<uint32_t> heap_;
  std::vector<FreedBlock> kept_;  // scratch of append
  size_t size_ = 0;
  int64_t clock_ = 0;
  std::array<int64_t, 3> evictions_{};
};

}  // namespace vllm_relational
