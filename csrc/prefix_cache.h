// Replays a planned batch against a prefix cache of KV blocks, as vLLM 0.32 keeps it.
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

namespace vllm_relational {

// Least-recently-used set of KV blocks, named by the hash chain of their tokens.
//
// Two different blocks with one 64-bit hash would be taken for the same. Among n distinct blocks the odds of any such
// pair are about n^2 / 2^65: one in 92,000 for 20 million blocks. The hash is not meant to withstand an attacker.
class PrefixCache {
 public:
  // capacity_blocks: 0 means without limit.
  explicit PrefixCache(int64_t capacity_blocks);

  // Serves one request. `chain` holds the hashes of its full blocks, root first, at most capacity_blocks of them; its
  // first `num_unchanged` hashes are those of the request before. Returns how many leading blocks were cached.
  // Afterwards all blocks of the chain are cached and most recent, the deepest the least recent among them, and the
  // least recent blocks of other requests are gone as far as the capacity asks.
  int64_t admit(std::span<const uint64_t> chain, size_t num_unchanged);

  int64_t size() const { return size_; }

 private:
  using Index = uint32_t;  // into nodes_

  struct Node {
    uint64_t hash;
    Index newer;
    Index older;
  };

  // `tag` is the low half of the hash: it gives the home slot when the table moves, and spares most look-ups of
  // nodes that share a slot by chance. `node` is 0 in an empty slot.
  struct Slot {
    uint32_t tag;
    Index node;
  };

  std::pair<Index, bool> find_or_insert(uint64_t hash);
  Index new_node(uint64_t hash);
  size_t find_slot(uint64_t hash) const;
  void erase_from_table(Index node);
  void grow_table();
  void evict_over_capacity();
  void unlink(Index node);
  void link_below(Index node, Index newer);

  int64_t capacity_;
  int64_t size_ = 0;
  size_t slot_mask_;
  std::vector<Slot> slots_;      // open addressing, linear probing, a power of two of slots
  std::vector<Node> nodes_;      // nodes_[0] closes the list: its `older` is the most recent, its `newer` the least
  std::vector<Index> recycled_;  // nodes of evicted blocks, free for reuse
  std::vector<Index> path_;      // the nodes of the request before, root first
};

// The token ids of one column's distinct cells, end to end: code c is tokens[offsets[c], offsets[c + 1]).
struct CellSegments {
  std::span<const int32_t> tokens;
  std::span<const int64_t> offsets;

  std::span<const int32_t> cell(int32_t code) const {
    const auto c = static_cast<size_t>(code);
    const auto begin = static_cast<size_t>(offsets[c]);
    return tokens.subspan(begin, static_cast<size_t>(offsets[c + 1]) - begin);
  }
};

// A planned batch; all memory is the caller's and must outlive the replay. Needs: every row, code and field in range,
// every row of `fields` a permutation of the columns, every prompt shorter than 2^31 tokens.
struct PlannedBatch {
  std::span<const int32_t> header;
  std::vector<CellSegments> columns;
  std::span<const int32_t> tail;
  const int32_t* codes;  // [num_columns][num_rows]
  int64_t num_rows;
  std::span<const int64_t> rows;  // the rows in the order asked
  const int32_t* fields;          // [rows.size()][num_columns], with the strides below, counted in elements
  int64_t field_row_stride;       // 0 when all rows share one order
  int64_t field_column_stride;

  int32_t field(size_t asked, size_t position) const {
    return fields[static_cast<int64_t>(asked) * field_row_stride +
                  static_cast<int64_t>(position) * field_column_stride];
  }
  int32_t code(int32_t column, int64_t row) const { return codes[column * num_rows + row]; }
};

// Per request, in the order asked: tokens served from the cache, and tokens of the prompt.
struct ReplayResult {
  std::vector<int32_t> hit_tokens;
  std::vector<int32_t> prompt_tokens;
};

// The prompt of a row is header + its cells in planned order + tail, cut in blocks of `block_size` tokens. A request
// reuses its leading cached blocks, though at most (prompt_len - 1) / block_size of them, because vLLM always
// recomputes one token or more; then all its full blocks are cached. Of a prompt larger than the cache the first
// capacity_blocks blocks stay. Needs block_size >= 1, capacity_blocks >= 0 (0: without limit).
ReplayResult simulate_prefix_cache(const PlannedBatch& batch, int64_t block_size, int64_t capacity_blocks);

}  // namespace vllm_relational
