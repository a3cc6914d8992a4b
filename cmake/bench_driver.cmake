# bench/native: kernels without torch's dispatcher, so that the benchmark can tell the two apart.
find_package(Python 3.10 REQUIRED COMPONENTS Interpreter Development.Module)
execute_process(COMMAND "${Python_EXECUTABLE}" -m pybind11 --cmakedir OUTPUT_STRIP_TRAILING_WHITESPACE
                OUTPUT_VARIABLE pybind11_ROOT RESULT_VARIABLE pybind11_missing)
if(pybind11_missing)
  message(FATAL_ERROR "STRATCORE_BENCH is on, but ${Python_EXECUTABLE} has no pybind11")
endif()
find_package(pybind11 CONFIG REQUIRED)
pybind11_add_module(_native bench/native/driver.cpp)
target_link_libraries(_native PRIVATE stratcore_core)
# Beside its source, where bench imports it; the library stays wherever this build wrote it.
set_target_properties(_native PROPERTIES
  LIBRARY_OUTPUT_DIRECTORY "${CMAKE_CURRENT_SOURCE_DIR}/bench/native"
  INSTALL_RPATH "$<TARGET_FILE_DIR:stratcore_core>")
