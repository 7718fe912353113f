// Which instructions the loops of the context search use: chosen when the program runs, by what the processor has.
#pragma once

#include <array>
#include <string_view>

namespace vllm_relational::context {

enum class SimdLevel { kPortable, kAvx2, kAvx512, kAvx512Bf16 };

struct NamedLevel {
  std::string_view name;
  SimdLevel level;
};

// From the least to the best. kAvx512: foundation, BW, DQ and VL; kAvx512Bf16: products of bfloat16 pairs beside them.
inline constexpr std::array kSimdLevels{
    NamedLevel{"portable", SimdLevel::kPortable},
    NamedLevel{"avx2", SimdLevel::kAvx2},
    NamedLevel{"avx512", SimdLevel::kAvx512},
    NamedLevel{"avx512_bf16", SimdLevel::kAvx512Bf16},
};

// Whether this processor, and this build, has it.
bool has_level(SimdLevel level);

// The best that this processor has.
SimdLevel best_level();

// By its name; "" is the best. Throws std::invalid_argument for another name, and for what the processor lacks.
SimdLevel level_named(std::string_view name);

}  // namespace vllm_relational::context
