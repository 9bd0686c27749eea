"""Patterns of words that deny an answer, attribute it to other people, or leave it open.

All patterns read folded text (`normalising.folded`): lower case, no apostrophes, Chinese in Simplified characters, so
that one pattern matches both scripts. `BEFORE` patterns read a clause's words before the object, `AFTER` patterns those
after it.
"""

from __future__ import annotations

import re

_BE_NOT = (
    r"isnt|wasnt|arent|werent|aint|dont|doesnt|didnt|cant|cannot|couldnt|wouldnt|shouldnt|wont|hasnt|havent|hadnt|"
    r"never|no longer"
)
NO_DENIAL = re.compile(
    r"\bnot (?:only|just|surprisingly|to mention)\b|\bno(?:ne)? other than\b|\bno doubt\b|\bwithout a? ?doubt\b"
    r"|\bcannot be denied\b|\bdont (?:worry|forget|mention it)\b|\bno one other than\b"
    r"|不但|不仅|不只|不丹|不愧|不错|不同|不管|不论|不用说|不用怀疑|不会错|不可否认|不是别人|没错|没问题|不列颠|"
    r"不莱梅|不在话下"
    r"|非洲|非常|除非"
)
"""Phrases that look like a denial but are not; they are removed before denials are looked for."""
DENIED_BEFORE = re.compile(
    rf"\b(?:not|{_BE_NOT}|nor|neither|nobody|no one|noone|hardly|no (?:evidence|proof|reason|record|truth)|false|wrong|"
    r"incorrect|untrue|myth|misconception|mistake|mistaken|mistakenly|wrongly|falsely|incorrectly|"
    r"(?:everyone|everybody|everything|anything|all) but|instead of|rather than|other than|than|except|unlike|"
    r"far from|anything but|stopped|(?:help|aid|assistance|support|student|pupil|contemporary|assistant) of|"
    r"(?:influenced|inspired|followed|helped|preceded|succeeded|accompanied|mocked|criticised|criticized) by|avoid|"
    r"avoids|refrain from|followed by|hate|dislike|detest|confused? with)\b"
    r"|不(?=是|需|必|再|叫|用|吃|在|会|该|应|能|可|算|属|为|由|位|写|喜|爱|姓|住|得|使|要|想|见|等|止|认)|并非|绝非|"
    r"决非|而非|非(?=$|是)|没|从未"
    r"|从不|从来不|从来没|未必|未曾|别(?!人|名|称)|不对|错|误以为|以为|误|假的|除了|而不|比$|仅?次于$|低于$|高于$|"
    r"不如$|不及$|取代$|谣言|其次是?$|避免|勿|讨厌|恨"
)
DENIED_AFTER = re.compile(
    r"^s not\b|^(?:had|has|have|played|plays) (?:nothing|no)\b|^(?:s )?(?:(?:is|was|are|were|has|have|had|do|does|did|"
    r"can|could|will|would|should) (?:\w+ly |also |just |in fact )?"
    rf"(?:not(?! only| just)|never|no longer)|(?:\w+ly )?(?:{_BE_NOT}))\b"
    r"|^(?:is|was|would be|as (?:the|an) answer is)? ?(?:an? |the )?(?:wrong|incorrect|false|myth|mistake|"
    r"misconception)\b"
    r"|^(?:已经|已|也|其实|并|绝对|根本|从来|当然|现在|早就|早已|早|都|可|才)*(?:不(?!过|仅|但|只|同|愧|远|久|错)|没|"
    r"并非|绝非|未|非(?!常|洲))"
)
DENIED_AT_END = re.compile(
    r"\b(?:is|was|are|would be|s) (?:\w+ly )?(?:an? |the )?(?:wrong|incorrect|false|untrue|not true|not correct|"
    r"not right|myth|mistake|misconception|lie|hoax)(?: \w+)?$|(?:是|并|并不|都)?(?:不对|不正确|不实|错误|错|假|谣言|"
    r"误会|误解)(?:的|了|答案)?$"
)
REJECTED = re.compile(
    r"^(?:but |and |oh |wait )?(?:sorry )?(?:that|this|it|which|those|my answer|answer)?s?(?: is| was| be| would be|"
    r" statement is| answer is)?"
    r" ?(?:an? |all |completely |simply |of course )?"
    r"(?:wrong|false|incorrect|not true|untrue|not correct|not right|not the case|mistake|myth|lie|error|"
    r"misconception)\b"
    r"|^(?:that|this|it|which)?(?:s| is)?(?:nt| isnt) (?:true|right|correct|case)\b"
    r"|^(?:oh |sorry |but |wait |no )*(?:i was|i am|im|i made an?|i have made an?|my) (?:mistaken|wrong|mistake|"
    r"error)\b|我?(?:说|弄|搞|讲|记)错"
    r"|^(?:但|可|不过|然而)?(?:那|这|此|这样|这个|这种|该|以上)?(?:说法|答案|回答)?(?:其实|显然|当然)?(?:是|并|都|也)?"
    r"(?:不对|不正确|不是真的|错|假|不实|误|谣言|有误)"
)
"""A clause that rejects the statement before it: "that is wrong", 這個說法是錯的."""
HEDGED = re.compile(
    r"\b(?:maybe|perhaps|possibly|might|may be|may have been|could be|could also|could have been|either|depends|"
    r"depending|unclear|undecided|whether|let me guess|wild guess)\b"
    r"|(?<!最有)可能|也许|或许|说不定|到底|恐怕|要么|要不然|不然就是|好像|看情况|难说"
)
UNSURE = re.compile(
    r"\b(?:(?:not|never) (?:entirely |quite |really |100 |so |very )?(?:sure|certain)|unsure|uncertain|no idea|"
    r"hard to say)\b"
    r"|不太?确定|不太?清楚|不晓得|没把握|不敢肯定|说不准|无法确定"
)
OPEN = re.compile(r"(?:吗|呢|么)$|是不是|是否")
"""A question without a question mark."""
PAST_BEFORE = re.compile(
    r"\b(?:used to|formerly|once|previously|was going to|were going to|was originally|was initially|in the past|former|"
    r"historically|at one time|had been|until|ex|would have been|should have been|was supposed to)\b"
    r"|\blast (?:year|month|week|season)\b|\byesterday\b|以前|去年|前年|上个?月|上周|上一?届|上一任|昨天|从前|曾|原本|"
    r"本来|前任|过去|之前|昔日|旧称|一度|古时|早年|早期|原名|差点"
)
PAST_AFTER = re.compile(
    r"^(?:s )?(?:used to be|was once|was formerly|was previously|was (?:the )?former|is (?:the )?former|had been)\b"
    r"|\b(?:was|were)\b.*\b(?:until|till|formerly|previously|in the past|back then)\b"
    r"|^是.{0,6}前(?=董|总|任|首|校|市|会|国|队|主|院|部|省)|^(?:以前|去年|前年|从前|曾|过去|原本|本来|之前|一度|早期)"
)
ATTRIBUTED = re.compile(
    r"\b(?:some|many|most|few|several|people|others|they|students|tourists|books|sources|everyone|everybody|websites) "
    r"(?:\w+ ){0,3}(?:think|thought|believe|believed|say|said|claim|claimed|assume|assumed|argue|insist|suppose|guess|"
    r"answer)\b"
    r"|\b(?:theory|theories|rumou?rs?|legend|supposedly|allegedly|reportedly|apocryphal)\b"
    r"|\b(?:is|was) (?:\w+ )?(?:said|thought|believed|claimed|assumed|rumou?red|credited)\b|\b(?:attributed|credited|"
    r"ascribed) to\b|\byou (?:might|may) think\b"
    r"|有人|有些人|有的人|很多人|许多人|不少人|多数人|大家(?!都知道)|人们|人家|据说|据传|听说|传说|相传|谣传|传闻|"
    r"一些人|网友|网路上说|网上说|坊间|民间|俗称"
)
ATTRIBUTED_AFTER = re.compile(
    r"^(?:is|was|has been|gets) (?:\w+ )?(?:said|thought|believed|claimed|assumed|rumou?red|credited|mistaken|"
    r"confused)\b"
    r"|^(?:常|经常)?(?:被误认|被误以|被当成|被认错)"
)
SOME = re.compile(
    r"\b(?:some|few|several|rumou?rs?|legend|allegedly|supposedly|others|theory|theories|mistaken|confused)\b"
    r"|有人|有些人|有的人|一些人|谣传|传闻|误认|误以|认错"
)
"""An attribution to some people only: it leaves the object open in any case."""
CONDITION = re.compile(
    r"^(?:and |but |or |even |only )?(?:if|suppose|supposing|imagine|unless|were|had it)\b|^(?:如果|若|假如|要是|假设|"
    r"倘若|除非|万一|即使|就算)"
)
RANK = re.compile(
    r"\b(?:second|third|fourth|fifth|2nd|3rd|4th|next) (?:most\b|\w+est\b)|第[二三四五六2-6](?=高|大|长|多|深|快|小|"
    r"重|好)|仅次于|亚军|排(?:名|行)?第?[二三四五]|第[二三四]名|\bcomes? (?:second|third)\b|\brunner up\b"
)
SUPERLATIVE = re.compile(r"\b(?:\w{2,}est|most|first|best)\b|最|第一")
CONTRAST = re.compile(
    r"\b(?:but|however|although|though|yet|instead|whereas|while)\b|但|不过|然而|可是|而(?!且)|虽然|相反|反而"
)
CORRECTION = re.compile(
    r"\b(?:actually|in fact|today|nowadays|these days|correction|sorry|wait|rather|i mean|i meant|in reality|in truth|"
    r"really|apologies|apologize|correct answer|right answer|on second thought|let me correct|correct that|"
    r"correct myself|oops|scratch that|strike that|make that|now(?! (?:in|at|on|an?|home|known|one|used|owned|"
    r"displayed|located|kept|part|called|regarded)\b))\b"
    r"|^(?:oh |well )*no(?:$| (?:its?|that|thats|i|im|wait|sorry|the)\b)"
    r"|[喔哦噢啊]不|其实|事实上|实际上|更正|不对|应该是|抱歉|对不起|正确|[说记弄搞讲]错|才对|等等|真正|才是|现在|改为|"
    r"改成|换成|变成|改由|如今|现任|目前|我是说"
)
ALSO = re.compile(r"\b(?:also|too|as well|another|besides|other|similarly|likewise|one of)\b|之一|也|还|另|其他|同样")
"""A statement about something additional, which rejects nothing."""
