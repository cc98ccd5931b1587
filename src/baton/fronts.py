"""A front and engines that are elsewhere, put together: a client of them, and what serves one front."""

from __future__ import annotations

from collections.abc import Callable

from baton import builtin
from baton.cluster.far import FarLoop
from baton.cluster.port import Depot, Engines
from baton.cluster.served import ServedEngine
from baton.cluster.wire import About, Message
from baton.compose import EngineHandle, model_name
from baton.core.clock import monotonic
from baton.core.config import Config
from baton.core.settings import load_settings
from baton.engine.client import Client
from baton.grammar.compiler import Grammars
from baton.loader.tokens import load_tokenizer
from baton.policy.port import traits
from baton.policy.table import policy_named


def open_front(config: Config, engines: Engines, about: About) -> Client:
    """A client of engines that are elsewhere. No weights are loaded; `about`: what the engines say of themselves."""
    asked = load_settings(config, config.model or str(builtin.path()), model_name(config))
    tokenizer = load_tokenizer(asked)
    tokenizer.prepare(about.settings.max_model_len)
    loop = FarLoop(engines, about, monotonic, losses=config.losses, handover=config.replica_handover)
    loop.start()
    return Client(
        model_name=about.model,
        settings=about.settings,
        tokenizer=tokenizer,
        fit=tokenizer.fit,
        defaults=about.defaults,
        loop=loop,
        clock=monotonic,
        honours=about.honours,
        compiler=Grammars(tokenizer, about.end_ids, about.settings.limits),
    )


def introduced(engine: EngineHandle) -> About:
    """What a front needs to know of an engine."""
    settings, loaded = engine.settings, engine.loaded
    honours = tuple(sorted(traits(policy_named(settings.policy)).honours))
    defaults = dict(loaded.generation.sampling)
    return About(engine.client.model_name, settings, honours, loaded.end_ids, loaded.stamp, defaults, loaded.weights)


def served_engine(engine: EngineHandle, send: Callable[[Message], None], depot: Depot | None = None) -> ServedEngine:
    """The engine for one front, to which `send` brings messages. `depot`: for keys and values of what leaves."""
    return ServedEngine(engine.client.loop, engine.client.compile, monotonic, send, depot)
