/* adapters.h - what the sub-commands of `lorry adapters` share. */
#ifndef LORRY_TOOLS_ADAPTERS_H
#define LORRY_TOOLS_ADAPTERS_H

#include "model/model.h"
#include "tools/tool.h"

enum { ADAPTERS_REVISION_SHOWN = 12 };

/* ERR_BAD_CONFIG: adapters.dir is empty. */
NODISCARD enum err adapters_need_root(const struct config *c, struct err_text *why);

/* Opens the model, and fills what model_adapter_check() takes; the root is adapters.dir.
 * Errors  ERR_BAD_CONFIG (no model is named, or the pool's sizes), ERR_BAD_MODEL. */
NODISCARD enum err adapters_open_model(const struct config *c, struct model **model,
                                       struct model_adapter_options *options, struct err_text *why);

#endif
