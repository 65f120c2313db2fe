"""The form of a deployment, as the schema that it is drawn from."""

from __future__ import annotations

from flows.alignment import align
from flows.commands.deployments import form_schema


def test_a_section_shows_its_own_values_before_the_sections_in_it() -> None:
    drawn = align.parameters.model_dump_for_openapi()
    schema = form_schema(drawn)
    fields = list(schema["definitions"]["PreferenceConfig"]["properties"])
    assert fields[-7:] == ["lora", "optimizer", "engine", "order", "kto", "simpo", "orpo"]
    assert fields.index("method") < fields.index("beta") < fields.index("lora"), "otherwise in the order of their declaration"
    assert schema == drawn, "only the order differs"
    assert list(schema["properties"]) == list(drawn["properties"])
