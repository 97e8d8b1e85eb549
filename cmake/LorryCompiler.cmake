# One place for the language, the warnings and the sanitizers.
set(CMAKE_C_STANDARD 17)
set(CMAKE_C_STANDARD_REQUIRED ON)
set(CMAKE_C_EXTENSIONS OFF)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(THREADS_PREFER_PTHREAD_FLAG ON)
find_package(Threads REQUIRED)

add_library(lorry_flags INTERFACE)
target_compile_definitions(lorry_flags INTERFACE _GNU_SOURCE
  LORRY_VERSION="${PROJECT_VERSION}" $<$<BOOL:${LORRY_DCHECK}>:LORRY_DCHECK>)
target_include_directories(lorry_flags INTERFACE ${CMAKE_SOURCE_DIR})
set(c_flags -Wall -Wextra -Wshadow -Wconversion -Wstrict-prototypes -Wmissing-prototypes
  -Wcast-qual -Wvla -Wswitch-enum -Wformat=2 -Werror -fno-omit-frame-pointer)
# A launch without a stream does not compile; a kernel without bounds fails in tools/lint.
set(cuda_flags -lineinfo --Werror=all-warnings,default-stream-launch
  -Xcompiler=-Wall,-Wextra,-fno-omit-frame-pointer)
target_compile_options(lorry_flags INTERFACE
  "$<$<COMPILE_LANGUAGE:C>:${c_flags}>" "$<$<COMPILE_LANGUAGE:CUDA>:${cuda_flags}>")
target_link_libraries(lorry_flags INTERFACE Threads::Threads m)
if(LORRY_SANITIZE)
  target_compile_options(lorry_flags INTERFACE -fsanitize=${LORRY_SANITIZE}
    -fno-sanitize-recover=all)
  target_link_options(lorry_flags INTERFACE -fsanitize=${LORRY_SANITIZE})
endif()

# lorry_library(NAME sources… [LINK libraries…]): one static library a folder.
function(lorry_library name)
  cmake_parse_arguments(ARG "" "" "LINK" ${ARGN})
  add_library(${name} STATIC ${ARG_UNPARSED_ARGUMENTS})
  target_link_libraries(${name} PUBLIC lorry_flags ${ARG_LINK})
endfunction()
