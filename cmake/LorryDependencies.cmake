# lorry_sysroot_library(NAME file): what pkg_check_modules would make, from LORRY_SYSROOT. An
# RPATH, unlike a RUNPATH, holds for what the library itself needs, too.
function(lorry_sysroot_library name file)
  add_library(PkgConfig::${name} INTERFACE IMPORTED)
  target_include_directories(PkgConfig::${name} SYSTEM INTERFACE ${sysroot}/include)
  target_link_libraries(PkgConfig::${name} INTERFACE ${sysroot}/lib/lib${file}.so)
  target_link_options(PkgConfig::${name} INTERFACE
    LINKER:--disable-new-dtags,-rpath,${sysroot}/lib)
endfunction()

if(LORRY_SYSROOT)
  get_filename_component(sysroot ${LORRY_SYSROOT} ABSOLUTE BASE_DIR ${CMAKE_SOURCE_DIR})
  lorry_sysroot_library(JANSSON jansson)
  lorry_sysroot_library(OPENBLAS openblas)
  lorry_sysroot_library(CRYPTO crypto)
  lorry_sysroot_library(CMOCKA cmocka)
  return()
endif()

# Libraries of the system, by pkg-config; the least versions are Debian 12's.
find_package(PkgConfig REQUIRED)
pkg_check_modules(JANSSON REQUIRED IMPORTED_TARGET jansson>=2.14)
pkg_check_modules(OPENBLAS REQUIRED IMPORTED_TARGET openblas)
pkg_check_modules(CRYPTO REQUIRED IMPORTED_TARGET libcrypto>=3.0)
pkg_check_modules(CMOCKA REQUIRED IMPORTED_TARGET cmocka>=1.1)
if(LORRY_GPU_TESTS)
  return()
endif()

pkg_check_modules(RDKAFKA REQUIRED IMPORTED_TARGET rdkafka>=2.0.2)
pkg_check_modules(HIREDIS REQUIRED IMPORTED_TARGET hiredis>=0.14)
pkg_check_modules(MICROHTTPD REQUIRED IMPORTED_TARGET libmicrohttpd>=0.9.75)
# The name changed with 6, whose .pc file in Debian 13 gives "include" for /usr/include.
pkg_search_module(MSGPACK REQUIRED IMPORTED_TARGET msgpack-c>=6 msgpack>=3.1)
get_target_property(msgpack_include PkgConfig::MSGPACK INTERFACE_INCLUDE_DIRECTORIES)
if(msgpack_include)
  list(FILTER msgpack_include EXCLUDE REGEX "^[^/]")
  set_target_properties(PkgConfig::MSGPACK PROPERTIES
    INTERFACE_INCLUDE_DIRECTORIES "${msgpack_include}")
endif()
