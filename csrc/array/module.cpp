#include "array_binding.h"

NB_MODULE(_array, module) {
  stratcore::array::bind_cayley_menger(module);
  stratcore::array::bind_topk_lista(module);
  stratcore::array::bind_tangent_projection(module);
  stratcore::array::bind_simplex_cv(module);
  stratcore::array::bind_toroidal_attention(module);
}
