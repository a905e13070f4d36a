"""What is said in English prompts of the Asterisk telephone exchange, by file name."""

from __future__ import annotations

import string
from collections.abc import Iterator


def _words(*lines: str) -> list[str]:
    return " ".join(lines).split()


UNITS = _words(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen",
    "eighteen nineteen",
)
TENS = {20: "twenty", 30: "thirty", 40: "forty", 50: "fifty", 60: "sixty", 70: "seventy", 80: "eighty", 90: "ninety"}
ORDINALS = _words(
    "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth fifteenth",
    "sixteenth seventeenth eighteenth nineteenth twentieth",
)
DAYS = _words("sunday monday tuesday wednesday thursday friday saturday")
MONTHS = _words("january february march april may june july august september october november december")
SPELLING = _words(
    "alpha bravo charlie delta echo foxtrot golf hotel india juliet kilo lima mike november oscar papa quebec romeo sierra",
    "tango uniform victor whiskey x-ray yankee zulu",
)
WORDS = (
    "hundred",
    "thousand",
    "million",
    "billion",
    "minus",
    "pound",
    "star",
    "dollars",
    "today",
    "tomorrow",
    "yesterday",
)


def words() -> Iterator[tuple[str, str]]:
    """(name, text) of the prompts of one word or letter, lower case."""
    for number, word in [*enumerate(UNITS), *TENS.items()]:
        yield f"digits/{number}", word
    for number, word in enumerate(ORDINALS, start=1):
        yield f"digits/h-{number}", word
    for number, word in TENS.items():
        if number > 20:
            yield f"digits/h-{number}", word[:-1] + "ieth"
    for kind, words in (("day", DAYS), ("mon", MONTHS)):
        for number, word in enumerate(words):
            yield f"digits/{kind}-{number}", word
    for word in WORDS:
        yield f"digits/{word}", word
    for word in ("hundred", "thousand", "million", "billion"):
        yield f"digits/h-{word}", f"{word}th"
    for letter, word in zip(string.ascii_lowercase, SPELLING, strict=True):
        yield f"letters/{letter}", letter
        yield f"phonetic/{letter}_p", word


# Whole sentences, lower case and without punctuation: where a speech recogniser's text (whisper-tiny.en, read by a person) and
# the prompt's name agree. Prompts that leave a doubt are not here.
SENTENCES = {
    "agent-loginok": "agent logged in",
    "all-circuits-busy-now": "all circuits are busy now",
    "at-tone-time-exactly": "at the sound of the tone the time will be exactly",
    "cannot-complete-as-dialed": "your call cannot be completed as dialed",
    "check-number-dial-again": "please check the number and dial again",
    "conf-enteringno": "you are entering conference number",
    "conf-extended": "the conference has been extended",
    "conf-full": "that conference is full",
    "conf-getchannel": "please enter the channel number followed by the pound key",
    "conf-getconfno": "please enter your conference number followed by the pound key",
    "conf-hasjoin": "is now in the conference",
    "conf-hasleft": "has left the conference",
    "conf-invalid": "that is not a valid conference number please try again",
    "conf-invalidpin": "that pin is invalid for this conference",
    "conf-kicked": "you have been kicked from this conference",
    "conf-leaderhasleft": "the leader has left the conference",
    "conf-locked": "this conference is locked",
    "conf-lockednow": "the conference is now locked",
    "conf-muted": "you are now muted",
    "conf-noempty": "no empty conferences currently exist",
    "conf-nonextended": "the conference cannot be extended",
    "conf-onlyone": "there is currently one other participant in the conference",
    "conf-onlyperson": "you are currently the only person in this conference",
    "conf-otherinparty": "other participants in the conference",
    "conf-placeintoconf": "you will now be placed into the conference",
    "conf-thereare": "there are currently",
    "conf-unlockednow": "the conference is now unlocked",
    "conf-unmuted": "you are now unmuted",
    "conf-waitforleader": "the conference will begin when the leader arrives",
    "confbridge-conf-begin": "the conference will now begin",
    "confbridge-conf-end": "the conference has ended",
    "confbridge-has-joined": "has joined the conference",
    "confbridge-invalid": "you have entered an invalid option",
    "confbridge-lock-no-join": "the conference is currently locked and cannot be joined",
    "confbridge-only-participant": "you are currently the only participant in the conference",
    "confbridge-unmuted": "you are no longer muted",
    "demo-echodone": "the echo test has been completed",
    "dictate/forhelp": "press zero for help",
    "dictate/playback_mode": "playback mode",
    "dictate/record_mode": "record mode",
    "feature-not-avail-line": "that feature is not available on this line",
    "followme/call-from": "incoming call from",
    "followme/no-recording": "you have an incoming call",
    "followme/options": "press one to accept this call or two to reject it",
    "hello-world": "hello world",
    "if-correct-press": "if this is correct press",
    "im-sorry": "i'm sorry",
    "info-about-last-call": "information about your last call",
    "number-not-answering": "the number is not answering",
    "one-moment-please": "one moment please",
    "pbx-parkingfailed": "parking attempt failed",
    "please-try-again": "please try again",
    "please-try-call-later": "please try your call again later",
    "pls-hold-while-try": "please hold while we try to connect you",
    "priv-recordintro": "at the tone please say your name",
    "privacy-incorrect": "i'm sorry that number is not valid",
    "queue-thankyou": "thank you for your patience",
    "queue-thereare": "you are currently caller number",
    "simul-call-limit-reached": "simultaneous call limit reached",
    "something-terribly-wrong": "something is terribly wrong",
    "ss-noservice": "the number you have dialed is not in service please check the number and try again",
    "tt-monkeysintro": "they have been carried away by monkeys",
    "tt-weasels": "weasels have eaten our phone system",
    "vm-advopts": "press three for advanced options",
    "vm-calldiffnum": "press two to enter a different number",
    "vm-changeto": "change to which folder",
    "vm-delete": "press seven to delete this message",
    "vm-deleted": "message deleted",
    "vm-dialout": "please wait while i connect your call",
    "vm-enter-num-to-call": "please enter the number you wish to call",
    "vm-forward": "press one to enter an extension press two to use the directory",
    "vm-from-extension": "message from extension",
    "vm-from-phonenumber": "message from phone number",
    "vm-helpexit": "press star for help or pound to exit",
    "vm-incorrect": "login incorrect",
    "vm-invalidpassword": "that is not a valid password please try again",
    "vm-isonphone": "is on the phone",
    "vm-isunavail": "is unavailable",
    "vm-leavemsg": "press five to leave a message",
    "vm-marked-urgent": "message marked urgent",
    "vm-msgforwarded": "your message has been successfully forwarded",
    "vm-msgsaved": "your message has been saved",
    "vm-newpassword": "please enter your new password followed by the pound key",
    "vm-next": "press six to play the next message",
    "vm-nobodyavail": "nobody is available to take your call at the moment",
    "vm-nomore": "no more messages",
    "vm-nonumber": "i'm afraid i don't know who sent this message",
    "vm-num-i-have": "the number i have is",
    "vm-passchanged": "your passwords have been changed",
    "vm-prev": "press four for the previous message",
    "vm-rec-busy": "after the tone say your busy message and then press the pound key",
    "vm-rec-name": "after the tone say your name and then press the pound key",
    "vm-rec-temp": "after the tone say your temporary message and then press the pound key",
    "vm-reenterpassword": "please re-enter your password followed by the pound key",
    "vm-repeat": "press five to repeat the current message",
    "vm-savemessage": "or nine to save this message",
    "vm-star-cancel": "press star to cancel",
    "vm-starmain": "press star to return to the main menu",
    "vm-tempgreetactive": "your temporary greeting is currently active",
    "vm-tempgreeting": "press one to record your temporary greeting",
    "vm-tempremoved": "your temporary greeting has been removed",
    "vm-then-pound": "then press pound",
    "vm-tocallback": "press two to call the person who sent this message",
    "vm-tocallnum": "press one to call this number",
    "vm-tocancel": "or pound to cancel",
    "vm-tocancelmsg": "press star to cancel this message",
    "vm-toenternumber": "press one to enter a number",
    "vm-toforward": "press eight to forward the message to another user",
    "vm-tomakecall": "press four to place an outgoing call",
    "vm-tooshort": "your message is too short",
    "vm-toreply": "press one to send a reply",
    "vm-unknown-caller": "from an unknown caller",
    "vm-whichbox": "to leave a message please enter a mailbox number",
}
