"""The rules: pure functions ``evolve(state, recorded) -> state`` and ``decide(state, command) ->
event``."""
