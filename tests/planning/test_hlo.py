"""Collectives by a text that has one of each kind of place for them."""

from robustjax.planning import hlo

TEXT = """HloModule jit_f, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%fused (p: f32[4]) -> f32[4] {
  %p = f32[4]{0} parameter(0)
  ROOT %inner = f32[4]{0:T(128)} all-reduce(%p), channel_id=1, to_apply=%add
}

%inner_condition (p: (s32[], f32[4])) -> pred[] {
  %p = (s32[], f32[4]{0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %ten = s32[]{:T(128)} constant(10)
  ROOT %less = pred[] compare(%i, %ten), direction=LT
}

%inner_body (p: (s32[], f32[4])) -> (s32[], f32[4]) {
  %p = (s32[], f32[4]{0}) parameter(0)
  %x = f32[4]{0} get-tuple-element(%p), index=1
  %y = f32[4]{0} fusion(%x), kind=kCustom, calls=%fused
  ROOT %out = (s32[], f32[4]{0}) tuple(%x, %y)
}

%outer_condition (p: (s32[], s32[], f32[4])) -> pred[] {
  %p = (s32[], s32[], f32[4]{0}) parameter(0)
  ROOT %less = pred[] compare(%p, %p), direction=LT
}

%outer_body (p: (s32[], s32[], f32[4])) -> (s32[], s32[], f32[4]) {
  %p = (s32[], s32[], f32[4]{0}) parameter(0)
  %loop = (s32[], f32[4]{0}) while(%p), condition=%inner_condition, body=%inner_body
  %both = (bf16[3,2]{1,0}, f32[]) all-reduce(%p, %p), channel_id=2, to_apply=%add
  %begun = (f32[2]{0}, f32[8]{0}) all-gather-start(%p), dimensions={0}
  %ended = f32[8]{0} all-gather-done(%begun)
  ROOT %out = (s32[], s32[], f32[4]{0}) tuple(%p, %p, %p)
}

ENTRY %main (x: f32[4]) -> f32[4] {
  %x = f32[4]{0} parameter(0)
  %loop = (s32[], s32[], f32[4]{0}) while(%x), condition=%outer_condition, body=%outer_body
  ROOT %out = f32[4]{0} get-tuple-element(%loop), index=2
}
"""


def test_collectives_count_as_often_as_their_loops_run():
    # Ten turns of 16 bytes, and one of 3 * 2 * 2 + 4; what a gathering begins with counts half of both its sides.
    assert hlo.collectives(TEXT) == {"all-reduce": (11, 10 * 16.0 + 16.0), "all-gather": (1, 20.0)}
