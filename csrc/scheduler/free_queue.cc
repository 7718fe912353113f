#include "scheduler/free_queue.h"

#include <algorithm>

namespace vllm_relational {

FreeQueue::FreeQueue(size_t num_blocks, std::span<const uint32_t> free, FutureUse* future)
    : future_(future), blocks_(num_blocks + 1), end_(static_cast<uint32_t>(num_blocks)) {
  blocks_[end_].before = blocks_[end_].after = end_;
  for (const uint32_t id : free) link_before(id, end_);
  size_ = free.size();
  if (future_ != nullptr) future_->set_listener(this);
}

FreeQueue::~FreeQueue() {
  if (future_ != nullptr) future_->set_listener(nullptr);
}

int64_t FreeQueue::rank_of(const Block& block) const {
  if (!block.has_hash) return kIdleRank;
  if (future_ == nullptr) return block.inserted;
  const int64_t next_use = future_->next_use(block.key);
  return next_use == FutureUse::kNever ? kIdleRank : -next_use;
}

uint32_t FreeQueue::take_head(uint32_t id) {
  unlink(id);
  blocks_[id].where = Where::kHeld;
  --size_;
  ++evictions_[blocks_[id].has_hash ? kIdle : kUnhashed];
  return id;
}

uint32_t FreeQueue::take_top() {
  const uint32_t id = heap_.front();
  const Block& block = blocks_[id];
  ++evictions_[!block.has_hash ? kUnhashed : block.rank == kIdleRank ? kIdle : kRanked];
  drop_from_heap(id);
  --size_;
  return id;
}

void FreeQueue::note_inserted(std::span<const uint32_t> taken) {
  ++clock_;
  for (const uint32_t id : taken) blocks_[id].inserted = clock_;
}

void FreeQueue::remove(uint32_t id) {
  if (blocks_[id].where == Where::kHeap) {
    drop_from_heap(id);
  } else {
    unlink(id);
    blocks_[id].where = Where::kHeld;
  }
  --size_;
}

void FreeQueue::prepend(std::span<const uint32_t> ids) {
  const uint32_t first = blocks_[end_].after;
  for (const uint32_t id : ids) {
    blocks_[id].has_hash = false;
    link_before(id, first);
  }
  size_ += ids.size();
}

// Idle blocks first, in the list and by the clock: what is kept is worth more.
void FreeQueue::append(std::span<const FreedBlock> freed) {
  int64_t newest = 0;
  kept_.clear();
  for (const FreedBlock& one : freed) {
    if (future_ != nullptr) future_->prefetch(one.key);
  }
  for (const FreedBlock& one : freed) {
    Block& block = blocks_[one.id];
    block.key = one.key;
    block.has_hash = one.has_hash;
    // A parent takes the age of the children that a request frees with it, which come before it.
    newest = block.inserted = std::max(newest, block.inserted);
    if (rank_of(block) != kIdleRank) {
      kept_.push_back(one);
      continue;
    }
    block.clock = ++clock_;
    link_before(one.id, end_);
  }
  for (const FreedBlock& one : kept_) {
    Block& block = blocks_[one.id];
    block.clock = ++clock_;
    keep(one.id, rank_of(block));
  }
  size_ += freed.size();
}

std::vector<uint32_t> FreeQueue::all() const {
  std::vector<uint32_t> ids;
  for (uint32_t id = blocks_[end_].after; id != end_; id = blocks_[id].after) ids.push_back(id);
  const auto num_listed = static_cast<std::ptrdiff_t>(ids.size());
  ids.insert(ids.end(), heap_.begin(), heap_.end());
  std::sort(ids.begin() + num_listed, ids.end(), [this](uint32_t one, uint32_t other) { return is_before(one, other); });
  return ids;
}

// -------------------------------------------------------------------------------------------------------- the list
void FreeQueue::link_before(uint32_t id, uint32_t next) {
  Block& block = blocks_[id];
  block.where = Where::kList;
  block.before = blocks_[next].before;
  block.after = next;
  blocks_[block.before].after = id;
  blocks_[next].before = id;
}

void FreeQueue::unlink(uint32_t id) {
  const Block& block = blocks_[id];
  blocks_[block.before].after = block.after;
  blocks_[block.after].before = block.before;
}

// ----------------------------------------------------------------------------------- kept blocks of the same key
void FreeQueue::chain(uint32_t id) {
  if (future_ == nullptr) return;
  Block& block = blocks_[id];
  uint32_t& mark = future_->mark(future_->entry(block.key));
  block.before = kNone;
  block.after = mark;
  if (mark != kNone) blocks_[mark].before = id;
  mark = id;
  block.chained = true;
}

void FreeQueue::unchain(uint32_t id) {
  Block& block = blocks_[id];
  if (!block.chained) return;
  block.chained = false;
  if (block.after != kNone) blocks_[block.after].before = block.before;
  if (block.before != kNone) {
    blocks_[block.before].after = block.after;
  } else {
    future_->mark(future_->entry(block.key)) = block.after;
  }
}

void FreeQueue::next_use_changed(uint32_t mark, int64_t next_use) {
  for (uint32_t id = mark; id != kNone; id = blocks_[id].after) {
    if (next_use == FutureUse::kNever) blocks_[id].chained = false;
    rank_again(id, next_use == FutureUse::kNever ? kIdleRank : -next_use);
  }
}

// -------------------------------------------------------------------------------------------------------- the heap
void FreeQueue::keep(uint32_t id, int64_t rank) {
  Block& block = blocks_[id];
  block.where = Where::kHeap;
  block.rank = rank;
  heap_.push_back(id);
  sift_up(heap_.size() - 1);
  chain(id);
}

void FreeQueue::rank_again(uint32_t id, int64_t rank) {
  Block& block = blocks_[id];
  const bool sooner = rank < block.rank;
  block.rank = rank;
  sooner ? sift_up(block.heap_at) : sift_down(block.heap_at);
}

bool FreeQueue::is_before(uint32_t one, uint32_t other) const {
  const Block& a = blocks_[one];
  const Block& b = blocks_[other];
  return a.rank != b.rank ? a.rank < b.rank : a.clock < b.clock;
}

void FreeQueue::sift_up(size_t at) {
  const uint32_t id = heap_[at];
  while (at > 0 && is_before(id, heap_[(at - 1) / 2])) {
    put(at, heap_[(at - 1) / 2]);
    at = (at - 1) / 2;
  }
  put(at, id);
}

void FreeQueue::sift_down(size_t at) {
  const uint32_t id = heap_[at];
  for (size_t child = 2 * at + 1; child < heap_.size(); child = 2 * at + 1) {
    if (child + 1 < heap_.size() && is_before(heap_[child + 1], heap_[child])) ++child;
    if (!is_before(heap_[child], id)) break;
    put(at, heap_[child]);
    at = child;
  }
  put(at, id);
}

void FreeQueue::drop_from_heap(uint32_t id) {
  unchain(id);
  const size_t at = blocks_[id].heap_at;
  const uint32_t last = heap_.back();
  heap_.pop_back();
  blocks_[id].where = Where::kHeld;
  if (last == id) return;
  put(at, last);
  sift_up(at);
  sift_down(blocks_[last].heap_at);
}

}  // namespace vllm_relational
