// A table from 64-bit keys to 32-bit numbers. The keys are hashes already, of whole prompts up to a block.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace vllm_relational {

inline constexpr uint32_t kNone = UINT32_MAX;

// Open addressing with linear probing; at most half of the slots are taken. All calls O(1) on average.
class KeyTable {
 public:
  KeyTable() : slots_(kFewest) {}

  size_t size() const { return size_; }

  // The number of a key, kNone if it is not there.
  uint32_t find(uint64_t key) const { return slots_[slot_of(key)].value; }

  // Says that a key will be asked for: several at once are fetched in the time of one.
  void prefetch(uint64_t key) const { __builtin_prefetch(&slots_[home_of(key)]); }

  // The number of a key, to be set by the caller; kNone in a new entry. Valid until the next change.
  uint32_t& insert(uint64_t key) {
    if (2 * (size_ + 1) > slots_.size()) grow();
    Slot& slot = slots_[slot_of(key)];
    if (slot.value == kNone) {
      slot.key = key;
      ++size_;
    }
    return slot.value;
  }

  // Takes a key out that is there. Entries behind it move up, so that no search ends too early.
  void erase(uint64_t key) {
    size_t hole = slot_of(key);
    const size_t mask = slots_.size() - 1;
    for (size_t i = (hole + 1) & mask; slots_[i].value != kNone; i = (i + 1) & mask) {
      const size_t home = home_of(slots_[i].key);
      if (((i - home) & mask) < ((i - hole) & mask)) continue;  // its search starts behind the hole
      slots_[hole] = slots_[i];
      hole = i;
    }
    slots_[hole].value = kNone;
    --size_;
  }

 private:
  struct Slot {
    uint64_t key = 0;
    uint32_t value = kNone;
  };

  static constexpr size_t kFewest = 16;

  size_t home_of(uint64_t key) const { return (key * 0x9e3779b97f4a7c15U) >> 32 & (slots_.size() - 1); }

  size_t slot_of(uint64_t key) const {
    size_t i = home_of(key);
    while (slots_[i].value != kNone && slots_[i].key != key) i = (i + 1) & (slots_.size() - 1);
    return i;
  }

  void grow() {
    std::vector<Slot> before(2 * slots_.size());
    before.swap(slots_);
    for (const Slot& slot : before) {
      if (slot.value != kNone) slots_[slot_of(slot.key)] = slot;
    }
  }

  std::vector<Slot> slots_;
  size_t size_ = 0;
};

}  // namespace vllm_relational
