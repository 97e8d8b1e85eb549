# lorry_unit_test(NAME libraries…): builds test_NAME.c of the calling folder and registers it.
# Names are unique over all folders: <folder>_<file>, e.g. lorry_unit_test(base_ring lorry_base).
# lorry_gpu_test likewise, of tests/gpu: they have the GPU to themselves, one after the other.
function(lorry_unit_test name)
  lorry_test(unit ${name} ${ARGN})
endfunction()

add_custom_target(gpu_tests)
function(lorry_gpu_test name)
  lorry_test(gpu ${name} ${ARGN})
  set_tests_properties(${name} PROPERTIES RESOURCE_LOCK gpu)
  add_dependencies(gpu_tests test_${name})
endfunction()

function(lorry_test label name)
  get_filename_component(folder ${CMAKE_CURRENT_SOURCE_DIR} NAME)
  string(REGEX REPLACE "^${folder}_" "" file ${name})
  add_executable(test_${name} test_${file}.c)
  target_link_libraries(test_${name} PRIVATE lorry_flags PkgConfig::CMOCKA ${ARGN})
  target_compile_definitions(test_${name} PRIVATE
    LORRY_SOURCE_DIR="${CMAKE_SOURCE_DIR}" LORRY_BINARY_DIR="${CMAKE_BINARY_DIR}")
  add_test(NAME ${name} COMMAND test_${name})
  set_tests_properties(${name} PROPERTIES TIMEOUT 300 LABELS ${label})
endfunction()
