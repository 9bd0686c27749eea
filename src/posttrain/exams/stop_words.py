"""Words that carry no content in an answer: function words, fillers, interjections and terms of address.

English in lower case with straight apostrophes (and what is left of a cut contraction); Chinese in Simplified
characters, as jieba cuts them. Own lists: the usual ones drop numbers, or keep `arr` and 喔.
"""

from __future__ import annotations

__all__ = ["CHINESE", "ENGLISH"]

_ENGLISH = """
a an the this that these those it its it's he him his she her hers they them their theirs we us our
ours you your yours i me my mine myself yourself itself themselves himself herself one ones be am is
are was were been being has have had having do does did doing done will would shall should can could
may might must ought i'm i'll i've i'd you're you'll you've he's she's we're we'll they're that's
there's what's who's here's isn't aren't wasn't weren't don't doesn't didn't won't wouldn't can't
cannot couldn't shouldn't let's and or but nor so yet if then than as of at by for from in into on
onto to with without within about over under up down out off above below between among during before
after while since until upon through across per via because although though however therefore thus
hence also too very quite rather just only even still already again ever not no yes never none
nothing neither either both each every any some all most more less much many few other another such
same own who whom whose which what when where why how there here now get got go gone make made take
say said tell know like way thing lot etc actually indeed really simply basically typically usually
generally commonly often sometimes called known named considered referred refer refers mean means
answer question please sure certainly ok okay well arr arrr arrgh aye matey mateys ahoy yo ho avast
ye yer o' mornin hey hi hello oh ah wow haha hmm um s t re ve ll d m
"""
_CHINESE = """
的 了 着 过 地 得 之 其 所 是 为 叫 叫做 称 称为 就是 即 也 也就是 就 都 才 而 而是 且
并 并且 和 与 及 以及 或 或者 还是 但 但是 不过 然而 因为 所以 因此 由于 如果 那么 虽然 可以
能 能够 会 要 需要 应该 应 将 把 被 让 使 给 在 于 从 到 由 对 向 以 用 用来 跟 同 这
那 这个 那个 这些 那些 这样 那样 它 他 她 我 你 您 我们 你们 他们 它们 她们 自己 谁 什么 哪
哪里 哪个 怎么 怎样 如何 多少 几 吗 呢 吧 啊 喔 哦 呀 啦 唷 哟 咧 喵 嘛 耶 哈 哈哈 嗨
你好 请 请问 主人 哎呀 不 没 没有 不是 非 无 是的 对 好 好的 有 又 再 很 非常 更 最 太
比较 一个 一种 一些 一 个 种 位 些 次 等 等等 则 既 里 里面 中 上 下 时 时候 后 前 内
之间 其中 此外 另外 例如 比如 像是 像 通常 一般 大约 约 大概 左右 多半 常常 常 经常 主要 其实
当然 只 只有 只要 便 却 仍 那 来 去 出 起来 属于 来说 来看 而言 说 认为 答案 问题 有人
"""
ENGLISH = frozenset(_ENGLISH.split())
CHINESE = frozenset(_CHINESE.split())
