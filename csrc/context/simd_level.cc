#include "context/simd_level.h"

#include <stdexcept>
#include <string>

namespace vllm_relational::context {

bool has_level(SimdLevel level) {
#if defined(__x86_64__)
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  switch (level) {
    case SimdLevel::kPortable: return true;
    case SimdLevel::kAvx2: return avx2;
    case SimdLevel::kAvx512: return avx512;
    case SimdLevel::kAvx512Bf16: return avx512 && __builtin_cpu_supports("avx512bf16");
  }
  return false;
#else
  return level == SimdLevel::kPortable;
#endif
}

SimdLevel best_level() {
  static const SimdLevel best = [] {
    SimdLevel found = SimdLevel::kPortable;
    for (const NamedLevel& each : kSimdLevels) {
      if (has_level(each.level)) found = each.level;
    }
    return found;
  }();
  return best;
}

SimdLevel level_named(std::string_view name) {
  if (name.empty()) return best_level();
  for (const NamedLevel& each : kSimdLevels) {
    if (each.name != name) continue;
    if (!has_level(each.level)) throw std::invalid_argument("this processor has no " + std::string(name));
    return each.level;
  }
  throw std::invalid_argument("no instructions are called '" + std::string(name) +
                              "': there are portable, avx2, avx512 and avx512_bf16");
}

}  // namespace vllm_relational::context
