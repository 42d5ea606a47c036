"""Label configs of the recorded projects, and one with many questions."""

from __future__ import annotations

CHOICES = (
    '<View><Text name="text" value="$text"/><Choices name="sentiment" toName="text" '
    'choice="single" showInline="true"><Choice value="Positive"/><Choice value="Negative"/>'
    "</Choices></View>"
)
SPANS = (
    '<View><Labels name="label" toName="text"><Label value="PER"/><Label value="ORG"/></Labels>'
    '<Text name="text" value="$text"/></View>'
)
PAIRWISE = (
    '<View><Header value="$prompt"/><Pairwise name="pw" toName="a,b"/>'
    '<Text name="a" value="$answer_a"/><Text name="b" value="$answer_b"/></View>'
)
MANY = (
    '<View><Text name="t" value="$t"/><Choices name="topics" toName="t" choice="multiple">'
    '<Choice value="a"/><Choice value="b"/></Choices><Rating name="stars" toName="t"/>'
    '<TextArea name="why" toName="t"/></View>'
)
