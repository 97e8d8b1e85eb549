# CUDA, when there is a compiler for it: the given CMAKE_CUDA_COMPILER, else what tools/setup says.
# Defines the library lorry_cuda, CUDA's runtime and cuBLASLt, and sets LORRY_CUDA_FOUND.
#
# No find_package(CUDAToolkit): the one of CMake before 3.31 fails on CUDA 13, and we need two
# libraries, which stand where the compiler looks by itself.
set(LORRY_CUDA AUTO CACHE STRING "the CUDA device: AUTO (if nvcc is found), ON or OFF")
set(LORRY_CUDA_FOUND OFF)

# What this machine has, and without a GPU the kind that our figures are of.
if(NOT DEFINED LORRY_CUDA_ARCHITECTURES)
  set(architectures)
  execute_process(COMMAND nvidia-smi --query-gpu=compute_cap --format=csv,noheader
    OUTPUT_VARIABLE capabilities RESULT_VARIABLE result ERROR_QUIET)
  if(result EQUAL 0)
    string(REGEX MATCHALL "[0-9]+\\.[0-9]" capabilities "${capabilities}")
    list(REMOVE_DUPLICATES capabilities)
    foreach(capability IN LISTS capabilities)
      if(capability VERSION_EQUAL 9.0)
        list(APPEND architectures 90a-real)
      elseif(capability VERSION_GREATER_EQUAL 8.0)
        string(REPLACE "." "" capability ${capability})
        list(APPEND architectures ${capability}-real)
      endif()
    endforeach()
  endif()
  if(NOT architectures)
    set(architectures 90a-real)
  endif()
endif()
set(LORRY_CUDA_ARCHITECTURES "${architectures}" CACHE STRING
  "GPUs to build for, as CUDA_ARCHITECTURES has it")

# Says why there is no CUDA; an error when it was asked for.
function(lorry_cuda_absent why)
  if(LORRY_CUDA STREQUAL "ON")
    message(FATAL_ERROR "LORRY_CUDA=ON: ${why}")
  endif()
  message(STATUS "No CUDA: ${why}")
endfunction()

if(LORRY_CUDA STREQUAL "OFF")
  return()
endif()

if(NOT CMAKE_CUDA_COMPILER)
  execute_process(COMMAND ${CMAKE_SOURCE_DIR}/tools/setup --path nvcc
    OUTPUT_VARIABLE nvcc OUTPUT_STRIP_TRAILING_WHITESPACE)
  if(NOT nvcc OR NOT EXISTS ${nvcc})
    lorry_cuda_absent("nvcc not found; `tools/setup cuda` fetches one")
    return()
  endif()
  set(CMAKE_CUDA_COMPILER ${nvcc})
endif()

# Read by enable_language(); without it CMake tries an architecture that nvcc no longer knows.
set(CMAKE_CUDA_ARCHITECTURES ${LORRY_CUDA_ARCHITECTURES})
set(CMAKE_CUDA_STANDARD 17)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_EXTENSIONS OFF)
enable_language(CUDA)
if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 12.4)
  lorry_cuda_absent("${CMAKE_CUDA_COMPILER} is older than 12.4")
  return()
endif()

# Not the stubs, which a toolkit puts first: they are for linking alone, nothing is there to run.
set(cuda_folders ${CMAKE_CUDA_IMPLICIT_LINK_DIRECTORIES})
list(FILTER cuda_folders EXCLUDE REGEX "/stubs/?$")
find_path(LORRY_CUBLAS_INCLUDE cublasLt.h HINTS ${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES})
find_library(LORRY_CUBLASLT NAMES cublasLt libcublasLt.so.13 libcublasLt.so.12 HINTS ${cuda_folders})
find_library(LORRY_CUDART cudart_static HINTS ${cuda_folders})
if(NOT LORRY_CUBLAS_INCLUDE OR NOT LORRY_CUBLASLT OR NOT LORRY_CUDART)
  lorry_cuda_absent("${CMAKE_CUDA_COMPILER} has no cuBLASLt beside it")
  return()
endif()

add_library(lorry_cuda INTERFACE)
target_include_directories(lorry_cuda SYSTEM INTERFACE
  ${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES} ${LORRY_CUBLAS_INCLUDE})
# The runtime comes linked in, so that only the driver must fit; cuBLASLt alone is 500 MB.
# CMake leaves a compiler's own folders out of the run path, which are not the loader's here.
get_filename_component(cublas_folder ${LORRY_CUBLASLT} DIRECTORY)
target_link_libraries(lorry_cuda INTERFACE ${LORRY_CUBLASLT} ${LORRY_CUDART} dl rt)
target_link_options(lorry_cuda INTERFACE LINKER:-rpath,${cublas_folder})
set(LORRY_CUDA_FOUND ON)
message(STATUS "CUDA ${CMAKE_CUDA_COMPILER_VERSION} for ${LORRY_CUDA_ARCHITECTURES}")
