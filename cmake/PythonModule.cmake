# subspan_python_module(<name> <sources>...): one pybind11 module, installed beside the Python package.
function(subspan_python_module name)
  pybind11_add_module(${name} MODULE NO_EXTRAS ${ARGN})
  target_include_directories(${name} PRIVATE ${PROJECT_SOURCE_DIR}/csrc)
  target_compile_definitions(${name} PRIVATE SUBSPAN_MODULE_NAME=${name} SUBSPAN_VERSION="${PROJECT_VERSION}")
  # -fno-math-errno lets sqrt be one instruction; nothing here reads errno. No -ffast-math: NaN and infinity must survive.
  # -ffp-contract=fast is said aloud because GCC turns fused multiply-add off under -std=c++17.
  target_compile_options(${name} PRIVATE
    $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -fno-math-errno -ffp-contract=fast $<$<BOOL:${SUBSPAN_WERROR}>:-Werror>>)
  if(SUBSPAN_SANITIZE)
    target_compile_definitions(${name} PRIVATE SUBSPAN_SANITIZE)
    # -O1: at -O3 the checks take five times as long to compile.
    target_compile_options(${name} PRIVATE -O1 -fsanitize=address,undefined -fno-sanitize-recover=undefined -g1)
    target_link_options(${name} PRIVATE -fsanitize=address,undefined)
    # With UBSan the templates of pybind11 take half as long again to compile: bindings have AddressSanitizer alone.
    set(bindings ${ARGN})
    list(FILTER bindings INCLUDE REGEX "^csrc/bindings/")
    set_source_files_properties(${bindings} PROPERTIES COMPILE_OPTIONS -fno-sanitize=undefined)
  endif()
  install(TARGETS ${name} LIBRARY DESTINATION subspan COMPONENT python)
endfunction()
