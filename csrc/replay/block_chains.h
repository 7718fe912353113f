// Reads a planned batch request by request: the prompt, cut in blocks, as a chain of block hashes.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "replay/planned_batch.h"

namespace vllm_relational {

// Builds one prompt after the other in one buffer and writes only what differs from the prompt before.
class PromptBuffer {
 public:
  explicit PromptBuffer(const PlannedBatch& batch)
      : batch_(batch), tokens_(longest_prompt(batch)), cells_(batch.columns.size(), {-1, -1}) {
    std::copy(batch.header.begin(), batch.header.end(), tokens_.begin());
  }

  // Moves to the prompt of the `asked`-th request. Returns how many leading tokens are those of the prompt before.
  size_t load(size_t asked) {
    const size_t num_same = skip_same_cells(asked);
    const size_t unchanged = length_;
    for (size_t i = num_same; i < cells_.size(); ++i) append(segment(cells_[i] = cell_at(asked, i)));
    append(batch_.tail);
    return unchanged;
  }

  size_t length() const { return length_; }

  std::span<const int32_t> block(size_t index, size_t block_size) const {
    return {tokens_.data() + index * block_size, block_size};
  }

 private:
  struct Cell {
    int32_t column;
    int32_t code;
    bool operator==(const Cell&) const = default;
  };

  static size_t longest_prompt(const PlannedBatch& batch) {
    size_t longest = batch.header.size() + batch.tail.size();
    for (const CellSegments& column : batch.columns) {
      int64_t longest_cell = 0;
      for (size_t c = 1; c < column.offsets.size(); ++c) {
        longest_cell = std::max(longest_cell, column.offsets[c] - column.offsets[c - 1]);
      }
      longest += static_cast<size_t>(longest_cell);
    }
    return longest;
  }

  Cell cell_at(size_t asked, size_t position) const {
    const int32_t column = batch_.field(asked, position);
    return {column, batch_.code(column, batch_.rows[asked])};
  }

  std::span<const int32_t> segment(Cell cell) const {
    return batch_.columns[static_cast<size_t>(cell.column)].cell(cell.code);
  }

  // Sets length_ to the end of the leading cells that the buffer already holds; returns their number.
  size_t skip_same_cells(size_t asked) {
    length_ = batch_.header.size();
    size_t i = 0;
    for (; i < cells_.size() && cells_[i] == cell_at(asked, i); ++i) length_ += segment(cells_[i]).size();
    return i;
  }

  void append(std::span<const int32_t> tokens) {
    std::copy(tokens.begin(), tokens.end(), tokens_.begin() + static_cast<std::ptrdiff_t>(length_));
    length_ += tokens.size();
  }

  const PlannedBatch& batch_;
  std::vector<int32_t> tokens_;
  std::vector<Cell> cells_;  // what the buffer holds after the header; {-1, -1} before the first prompt
  size_t length_ = 0;
};

// The full blocks of one prompt after the other, each named by a hash of its tokens and of the blocks before it.
class BlockChains {
 public:
  // max_blocks: how many blocks of a prompt are looked at, from its start. The batch must outlive this object.
  BlockChains(const PlannedBatch& batch, int64_t block_size, size_t max_blocks)
      : prompt_(batch), block_size_(static_cast<size_t>(block_size)), max_blocks_(max_blocks) {}

  // Moves to the `asked`-th request. Returns how many leading blocks are those of the request before.
  size_t load(size_t asked);

  // The hashes of its full blocks, root first, at most max_blocks.
  std::span<const uint64_t> chain() const { return chain_; }
  int32_t prompt_tokens() const { return static_cast<int32_t>(prompt_.length()); }

  // The tokens a prompt reuses when its first `cached` blocks are in the cache: the last token is always computed.
  int32_t hit_tokens(int64_t cached, int32_t prompt_tokens) const {
    const size_t most = prompt_tokens == 0 ? 0 : static_cast<size_t>(prompt_tokens - 1) / block_size_;
    return static_cast<int32_t>(std::min(static_cast<size_t>(cached), most) * block_size_);
  }

 private:
  PromptBuffer prompt_;
  size_t block_size_;
  size_t max_blocks_;
  std::vector<uint64_t> chain_;
};

}  // namespace vllm_relational
