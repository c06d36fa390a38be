"""What this plugin provides, as plain data: the entry point of group "shortgpt" names this module."""

from shortgpt import Architecture, hookimpl


@hookimpl
def shortgpt_architectures() -> tuple[Architecture, ...]:
    return (
        Architecture(
            "pebble",
            "shortgpt_pebble.adapter:PebbleFamily",
            "a minimal GRU on bytes",
            model_types=("pebble",),  # how a folder is recognised: by the model_type of its config.json
            modules=("shortgpt_pebble.model",),  # how a model in memory is: by the module of its class
        ),
    )
