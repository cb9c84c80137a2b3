// Instruction-set levels. Every csrc/cpu/<op>/kernels.cpp is compiled once per level, with
// FASTCLIP_ISA naming the level's namespace, and the best level this CPU has is chosen at run time.
//
// Rule: a file compiled per level instantiates no std template and defines nothing with external
// linkage outside its level's namespace. The linker would keep one copy for all levels, perhaps the
// AVX-512 one, and a CPU without it would fault.
#pragma once

namespace fastclip::cpu {

enum class Isa { kBaseline, kV3, kV4 };

Isa best_isa();  // FASTCLIP_ISA=baseline|v3|v4 in the environment lowers it
const char* isa_name(Isa isa);

#if FASTCLIP_X86_LEVELS
#define FASTCLIP_DISPATCH(call)                      \
  switch (::fastclip::cpu::best_isa()) {             \
    case ::fastclip::cpu::Isa::kV4: return v4::call; \
    case ::fastclip::cpu::Isa::kV3: return v3::call; \
    default: return baseline::call;                  \
  }
#define FASTCLIP_DECLARE(declaration) \
  namespace baseline {                \
  declaration;                        \
  }                                   \
  namespace v3 {                      \
  declaration;                        \
  }                                   \
  namespace v4 {                      \
  declaration;                        \
  }
#else
#define FASTCLIP_DISPATCH(call) return baseline::call;
#define FASTCLIP_DECLARE(declaration) \
  namespace baseline {                \
  declaration;                        \
  }
#endif

}  // namespace fastclip::cpu
