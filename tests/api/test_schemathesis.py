"""The described API, tried with what schemathesis makes of its description: valid, invalid, on the edge."""

from collections.abc import Iterator
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis import Case, CheckFunction
from schemathesis.config import SchemathesisConfig
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

from gateway.api.openapi import document
from gateway.live.hub import Hub, Packet
from gateway.transit.state import ClientId, DeviceId
from tests.running import Running, gateway_in_a_thread, token

CONFIG = SchemathesisConfig.from_dict(
    {"generation": {"deterministic": True, "max-examples": 30, "with-security-parameters": False}}
)
# The stream of pushes has no end to wait for.
schema = schemathesis.openapi.from_dict(document(), config=CONFIG).exclude(operation_id="pushes")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    newer = Hub.newer

    async def hardly_held(
        hub: Hub, client_id: ClientId, version: int, *, wait_s: float, device_id: DeviceId | None
    ) -> Packet | None:
        return await newer(hub, client_id, version, wait_s=min(wait_s, 0.01), device_id=device_id)

    folder = tmp_path_factory.mktemp("schemathesis")
    with (
        pytest.MonkeyPatch.context() as patch,
        gateway_in_a_thread(folder, OPERATOR_TOKEN="the operator's own") as found,
    ):
        patch.setattr(Hub, "newer", hardly_held)
        yield found


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    with requests.Session() as found:
        found.trust_env = False
        yield found


EXCLUDED: dict[str, list[CheckFunction]] = {
    # How large a video may be, and of which types, is the gateway's to set: what the description allows may be refused.
    "announce": [positive_data_acceptance],
    # A broken item of a sync fails by itself, and the answer stays 200, so that the others are reported.
    "sync": [negative_data_rejection],
    # What is sent here is a plain GET, no handshake: it is answered 426, whatever its query says.
    "socket": [positive_data_acceptance, negative_data_rejection],
}


@schema.parametrize()
@settings(deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None)
def test_the_api_is_what_its_description_says(case: Case[Any], served: Running, session: requests.Session) -> None:
    excluded = [*EXCLUDED.get(case.operation.definition.raw["operationId"], [])]
    if isinstance(case.body, dict) and any(isinstance(value, float) for value in case.body.values()):
        # To JSON Schema 1e3 is an integer; to the protocol, whose JSON types are exact, it is none.
        excluded.append(positive_data_acceptance)
    headers = {"Authorization": f"Bearer {token('fuzz')}"}
    case.call_and_validate(served.url, session, headers=headers, excluded_checks=excluded, timeout=20)
