#include "cpu/vector/isa.h"

#include <cstdlib>
#include <cstring>
#include <initializer_list>

namespace fastclip::cpu {
namespace {

Isa hardware_isa() {
#if FASTCLIP_X86_LEVELS
  __builtin_cpu_init();
  const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                  __builtin_cpu_supports("bmi2");
  const bool v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                  __builtin_cpu_supports("avx512vl");
  if (v4) return Isa::kV4;
  if (v3) return Isa::kV3;
#endif
  return Isa::kBaseline;
}

Isa choose() {
  const Isa hardware = hardware_isa();
  const char* wanted = std::getenv("FASTCLIP_ISA");
  if (wanted == nullptr) return hardware;
  for (Isa isa : {Isa::kBaseline, Isa::kV3, Isa::kV4}) {
    if (std::strcmp(wanted, isa_name(isa)) == 0) return isa < hardware ? isa : hardware;
  }
  return hardware;
}

}  // namespace

Isa best_isa() {
  static const Isa isa = choose();
  return isa;
}

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::kV4: return "v4";
    case Isa::kV3: return "v3";
    default: return "baseline";
  }
}

}  // namespace fastclip::cpu
