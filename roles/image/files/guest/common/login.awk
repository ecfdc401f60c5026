# Copyright (c) 2026, The cocoon.microvm authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Reads one JSON object of strings, null and lists of strings; prints a line "<key> <value>"
# for each string, and "given <key>" for each list. Control characters in a string become spaces, so a value is one line.

{ text = text $0 " " }

END {
    size = length(text)
    key = ""
    list = 0
    for (at = 1; at <= size; at++) {
        char = substr(text, at, 1)
        if (char == "[") {
            list = 1
            print "given " key
        } else if (char == "]")
            list = 0
        else if (char == ",") {
            if (!list)
                key = ""
        } else if (char == "\"") {
            value = string()
            if (key == "")
                key = value
            else
                print key " " value
        }
    }
}

# The string that begins at the quote at `at`; leaves `at` on the closing quote.
function string(    result, char) {
    result = ""
    for (at++; at <= size; at++) {
        char = substr(text, at, 1)
        if (char == "\"")
            return result
        if (char == "\\") {
            at++
            char = escape(substr(text, at, 1))
        }
        result = result char
    }
    return result
}

function escape(char) {
    if (index("\"\\/", char))
        return char
    if (char == "u") {
        char = unicode(tolower(substr(text, at + 1, 4)))
        at += 4
        return char
    }
    return " "
}

# Only comments of keys can hold anything beyond ASCII, and nothing reads those.
function unicode(code,    value, i) {
    value = 0
    for (i = 1; i <= 4; i++)
        value = value * 16 + index("0123456789abcdef", substr(code, i, 1)) - 1
    return value >= 32 && value < 127 ? sprintf("%c", value) : value < 32 ? " " : "?"
}
