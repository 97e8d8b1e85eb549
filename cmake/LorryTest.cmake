# lorry_unit_test(NAME libraries…): builds test_NAME.c of the calling folder and registers it.
# Names are unique over all folders: <folder>_<file>, e.g. lorry_unit_test(base_ring lorry_base).
function(lorry_unit_test name)
  get_filename_component(folder ${CMAKE_CURRENT_SOURCE_DIR} NAME)
  string(REGEX REPLACE "^${folder}_" "" file ${name})
  add_executable(test_${name} test_${file}.c)
  target_link_libraries(test_${name} PRIVATE lorry_flags PkgConfig::CMOCKA ${ARGN})
  target_compile_definitions(test_${name} PRIVATE
    LORRY_SOURCE_DIR="${CMAKE_SOURCE_DIR}" LORRY_BINARY_DIR="${CMAKE_BINARY_DIR}")
  add_test(NAME ${name} COMMAND test_${name})
  set_tests_properties(${name} PROPERTIES TIMEOUT 300 LABELS unit)
endfunction()
