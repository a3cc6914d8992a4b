# _array: the torch-free Python face, for NumPy, CuPy and JAX arrays.
find_package(Python 3.10 REQUIRED COMPONENTS Interpreter Development.Module
             OPTIONAL_COMPONENTS Development.SABIModule)
execute_process(COMMAND "${Python_EXECUTABLE}" -m nanobind --cmake_dir OUTPUT_STRIP_TRAILING_WHITESPACE
                OUTPUT_VARIABLE nanobind_ROOT RESULT_VARIABLE nanobind_missing)
if(nanobind_missing)
  message(FATAL_ERROR "STRATCORE_ARRAY is on, but ${Python_EXECUTABLE} has no nanobind")
endif()
find_package(nanobind CONFIG REQUIRED)
nanobind_add_module(_array STABLE_ABI NB_STATIC LTO csrc/array/module.cpp)
foreach(op ${OPS})
  foreach(part ${${op}_PARTS})
    target_sources(_array PRIVATE csrc/array/${part}_array.cpp)
  endforeach()
endforeach()
target_link_libraries(_array PRIVATE stratcore_core)
