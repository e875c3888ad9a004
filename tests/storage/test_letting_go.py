from __future__ import annotations

from storage.letting_go import let_go, let_go_by


def test_what_is_still_held_is_let_go_of_the_last_first() -> None:
    gone: list[str] = []
    with let_go_by(lambda: gone.append("first")), let_go_by(lambda: 1 / 0), let_go_by(lambda: gone.append("last")):
        with let_go_by(lambda: gone.append("left")):
            pass
        let_go()
        assert gone == ["last", "first"]
        let_go()
    let_go()
    assert gone == ["last", "first"]
