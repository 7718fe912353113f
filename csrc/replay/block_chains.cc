#include "replay/block_chains.h"

#include <cstring>

namespace vllm_relational {
namespace {

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

}  // namespace

size_t BlockChains::load(size_t asked) {
  const size_t unchanged_tokens = prompt_.load(asked);
  const size_t num_full = std::min(prompt_.length() / block_size_, max_blocks_);
  const size_t num_unchanged = std::min({unchanged_tokens / block_size_, chain_.size(), num_full});
  chain_.resize(num_unchanged);
  for (size_t i = num_unchanged; i < num_full; ++i) {
    chain_.push_back(hash_block(i == 0 ? 0 : chain_[i - 1], prompt_.block(i, block_size_)));
  }
  return num_unchanged;
}

}  // namespace vllm_relational
