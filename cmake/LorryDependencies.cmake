# Libraries of the system, by pkg-config; the least versions are Debian 12's.
find_package(PkgConfig REQUIRED)
pkg_check_modules(RDKAFKA REQUIRED IMPORTED_TARGET rdkafka>=2.0.2)
pkg_check_modules(HIREDIS REQUIRED IMPORTED_TARGET hiredis>=0.14)
# The name changed with 6, whose .pc file in Debian 13 gives "include" for /usr/include.
pkg_search_module(MSGPACK REQUIRED IMPORTED_TARGET msgpack-c>=6 msgpack>=3.1)
get_target_property(msgpack_include PkgConfig::MSGPACK INTERFACE_INCLUDE_DIRECTORIES)
if(msgpack_include)
  list(FILTER msgpack_include EXCLUDE REGEX "^[^/]")
  set_target_properties(PkgConfig::MSGPACK PROPERTIES
    INTERFACE_INCLUDE_DIRECTORIES "${msgpack_include}")
endif()
pkg_check_modules(JANSSON REQUIRED IMPORTED_TARGET jansson>=2.14)
pkg_check_modules(MICROHTTPD REQUIRED IMPORTED_TARGET libmicrohttpd>=0.9.75)
pkg_check_modules(OPENBLAS REQUIRED IMPORTED_TARGET openblas)
pkg_check_modules(CRYPTO REQUIRED IMPORTED_TARGET libcrypto>=3.0)
pkg_check_modules(CMOCKA REQUIRED IMPORTED_TARGET cmocka>=1.1)
