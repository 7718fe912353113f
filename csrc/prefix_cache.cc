#include "prefix_cache.h"

#include <algorithm>
#include <cstring>
#include <limits>

namespace vllm_relational {
namespace {

constexpr size_t kFirstSlots = 1024;

// ------------------------------------------------------------------------------------------------ block hashes
// The multiply-and-fold step of wyhash: both halves of the 128-bit product matter, so every bit of the input reaches
// every bit of the output. The constants are wyhash's; token ids are not negative, so a pair of them never equals kA,
// whose top bit is set, and no factor becomes zero by the choice of tokens.
constexpr uint64_t kA = 0xa0761d6478bd642fULL;
constexpr uint64_t kB = 0xe7037ed1a0b428dbULL;
constexpr uint64_t kC = 0x8ebc6af09c88c6e3ULL;

uint64_t mix(uint64_t a, uint64_t b) {
  __extension__ using Product = unsigned __int128;
  const Product product = static_cast<Product>(a) * b;
  return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
}

uint64_t two_tokens(const int32_t* tokens) {
  uint64_t word;
  std::memcpy(&word, tokens, sizeof word);
  return word;
}

// The identity of a block: its parent's identity and its own tokens.
uint64_t hash_block(uint64_t parent, std::span<const int32_t> block) {
  uint64_t hash = parent ^ kB;
  size_t i = 0;
  for (; i + 4 <= block.size(); i += 4) {
    hash = mix(two_tokens(&block[i]) ^ kA, two_tokens(&block[i + 2]) ^ hash);
  }
  for (; i < block.size(); ++i) hash = mix(static_cast<uint32_t>(block[i]) ^ kA, hash);
  return mix(hash ^ kC, kA);
}

// ----------------------------------------------------------------------------------------------------- prompts
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

}  // namespace

// ------------------------------------------------------------------------------------------------------- cache
PrefixCache::PrefixCache(int64_t capacity_blocks)
    : capacity_(capacity_blocks == 0 ? std::numeric_limits<int64_t>::max() : capacity_blocks),
      slot_mask_(kFirstSlots - 1),
      slots_(kFirstSlots, Slot{0, 0}),
      nodes_(1, Node{0, 0, 0}) {}

int64_t PrefixCache::admit(std::span<const uint64_t> chain, size_t num_unchanged) {
  for (const uint64_t hash : chain.subspan(num_unchanged)) __builtin_prefetch(&slots_[hash & slot_mask_]);
  // The unchanged blocks head the list already, in this order: the request before put them there.
  path_.resize(num_unchanged);
  Index above = path_.empty() ? 0 : path_.back();
  size_t hits = num_unchanged;
  for (size_t i = num_unchanged; i < chain.size(); ++i) {
    const auto [node, was_cached] = find_or_insert(chain[i]);
    if (was_cached && hits == i) ++hits;
    link_below(node, above);
    path_.push_back(node);
    above = node;
  }
  evict_over_capacity();
  return static_cast<int64_t>(hits);
}

std::pair<PrefixCache::Index, bool> PrefixCache::find_or_insert(uint64_t hash) {
  const size_t slot = find_slot(hash);
  if (slots_[slot].node != 0) {
    unlink(slots_[slot].node);
    return {slots_[slot].node, true};
  }
  const Index node = new_node(hash);
  slots_[slot] = {static_cast<uint32_t>(hash), node};
  ++size_;
  if (static_cast<size_t>(size_) * 5 > slots_.size() * 3) grow_table();
  return {node, false};
}

// The new node is linked to itself, so that it can be unlinked like any other.
PrefixCache::Index PrefixCache::new_node(uint64_t hash) {
  if (recycled_.empty()) {
    recycled_.push_back(static_cast<Index>(nodes_.size()));
    nodes_.emplace_back();
  }
  const Index node = recycled_.back();
  recycled_.pop_back();
  nodes_[node] = {hash, node, node};
  return node;
}

// The slot that holds `hash`, or the empty slot where it belongs.
size_t PrefixCache::find_slot(uint64_t hash) const {
  const auto tag = static_cast<uint32_t>(hash);
  size_t slot = hash & slot_mask_;
  while (slots_[slot].node != 0 && (slots_[slot].tag != tag || nodes_[slots_[slot].node].hash != hash)) {
    slot = (slot + 1) & slot_mask_;
  }
  return slot;
}

// Closes the gap by moving later entries back, so that no probe meets a false end and no tombstones pile up.
void PrefixCache::erase_from_table(Index node) {
  size_t gap = find_slot(nodes_[node].hash);
  for (size_t probe = (gap + 1) & slot_mask_; slots_[probe].node != 0; probe = (probe + 1) & slot_mask_) {
    const size_t from_home = (probe - slots_[probe].tag) & slot_mask_;
    const size_t from_gap = (probe - gap) & slot_mask_;
    if (from_home < from_gap) continue;  // its home lies behind the gap: it may not move before its home
    slots_[gap] = slots_[probe];
    gap = probe;
  }
  slots_[gap] = {0, 0};
}

void PrefixCache::grow_table() {
  std::vector<Slot> old = std::exchange(slots_, std::vector<Slot>(slots_.size() * 2, Slot{0, 0}));
  slot_mask_ = slots_.size() - 1;
  for (const Slot& entry : old) {
    if (entry.node == 0) continue;
    size_t slot = entry.tag & slot_mask_;
    while (slots_[slot].node != 0) slot = (slot + 1) & slot_mask_;
    slots_[slot] = entry;
  }
}

// The request's own blocks head the list and are at most `capacity_`, so only blocks of other requests go.
void PrefixCache::evict_over_capacity() {
  for (; size_ > capacity_; --size_) {
    const Index oldest = nodes_[0].newer;
    erase_from_table(oldest);
    unlink(oldest);
    recycled_.push_back(oldest);
  }
}

void PrefixCache::unlink(Index node) {
  const auto [hash, newer, older] = nodes_[node];
  nodes_[newer].older = older;
  nodes_[older].newer = newer;
  nodes_[node].newer = nodes_[node].older = node;
}

// Puts an unlinked node right after `newer` (0: at the head). Two blocks of one request can only be the same node when
// their hashes collide; the list must stay whole even then.
void PrefixCache::link_below(Index node, Index newer) {
  if (node == newer) newer = 0;
  const Index older = nodes_[newer].older;
  nodes_[node] = {nodes_[node].hash, newer, older};
  nodes_[newer].older = node;
  nodes_[older].newer = node;
}

// ------------------------------------------------------------------------------------------------------ replay
ReplayResult simulate_prefix_cache(const PlannedBatch& batch, int64_t block_size, int64_t capacity_blocks) {
  const auto block = static_cast<size_t>(block_size);
  const size_t max_blocks =
      capacity_blocks == 0 ? std::numeric_limits<size_t>::max() : static_cast<size_t>(capacity_blocks);
  PromptBuffer prompt(batch);
  PrefixCache cache(capacity_blocks);
  std::vector<uint64_t> chain;  // the hashes of the current prompt's full blocks
  ReplayResult result;
  result.hit_tokens.reserve(batch.rows.size());
  result.prompt_tokens.reserve(batch.rows.size());
  for (size_t asked = 0; asked < batch.rows.size(); ++asked) {
    const size_t unchanged_tokens = prompt.load(asked);
    const size_t length = prompt.length();
    const size_t num_full = std::min(length / block, max_blocks);
    const size_t num_unchanged = std::min({unchanged_tokens / block, chain.size(), num_full});
    chain.resize(num_unchanged);
    for (size_t i = num_unchanged; i < num_full; ++i) {
      chain.push_back(hash_block(i == 0 ? 0 : chain[i - 1], prompt.block(i, block)));
    }
    const auto cached = static_cast<size_t>(cache.admit(chain, num_unchanged));
    const size_t most = length == 0 ? 0 : (length - 1) / block;
    result.hit_tokens.push_back(static_cast<int32_t>(std::min(cached, most) * block));
    result.prompt_tokens.push_back(static_cast<int32_t>(length));
  }
  return result;
}

}  // namespace vllm_relational
