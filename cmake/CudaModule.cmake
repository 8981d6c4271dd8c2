# Finds the CUDA compiler, unless SUBSPAN_CUDA is OFF, and sets subspan_have_cuda. Languages are enabled in the scope of
# the directory, hence not in a function.
set(subspan_have_cuda FALSE)
if(NOT SUBSPAN_CUDA STREQUAL "OFF")
  include(CheckLanguage)
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
      set(CMAKE_CUDA_ARCHITECTURES 80-real 90-real 90-virtual)
    elseif(CMAKE_CUDA_ARCHITECTURES STREQUAL "release")
      set(CMAKE_CUDA_ARCHITECTURES 75-real 80-real 86-real 89-real 90-real 100-real 120-real 120-virtual)
    endif()
    enable_language(CUDA)
    find_package(CUDAToolkit REQUIRED)
    set(subspan_have_cuda TRUE)
  elseif(SUBSPAN_CUDA STREQUAL "ON")
    message(FATAL_ERROR "SUBSPAN_CUDA=ON but no CUDA compiler was found: put nvcc on PATH or set CUDACXX")
  else()
    message(STATUS "subspan: no CUDA compiler found, building the CPU modules only")
  endif()
endif()

# subspan_cuda_module(<sources>...): the optional module _cuda. It links the CUDA runtime statically and nothing else of
# CUDA, so that it imports on a machine without a driver and works beside any torch.
function(subspan_cuda_module)
  subspan_python_module(_cuda ${ARGN})
  set_target_properties(_cuda PROPERTIES CUDA_STANDARD 17 CUDA_STANDARD_REQUIRED ON CUDA_RUNTIME_LIBRARY Static)
  target_link_libraries(_cuda PRIVATE CUDA::cudart_static)
endfunction()

# subspan_emulated_module(<sources>...): the same sources compiled by the host compiler against core/cuda/emulator.h.
# They are compiled through one-line copies with a C++ suffix: a source file has one language in a directory.
function(subspan_emulated_module)
  set(sources "")
  foreach(source IN LISTS ARGN)
    get_filename_component(name ${source} NAME_WE)
    set(wrapper ${PROJECT_BINARY_DIR}/emulated/${name}.cpp)
    file(CONFIGURE OUTPUT ${wrapper} CONTENT "#include \"${PROJECT_SOURCE_DIR}/${source}\"\n" @ONLY)
    list(APPEND sources ${wrapper})
  endforeach()
  subspan_python_module(_cuda_emulated ${sources})
  target_compile_definitions(_cuda_emulated PRIVATE SUBSPAN_CUDA_EMULATED)
  target_compile_options(_cuda_emulated PRIVATE -O1 -Wno-unknown-pragmas)  # nvcc understands #pragma unroll
endfunction()
