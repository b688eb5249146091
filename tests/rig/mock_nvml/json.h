// SPDX-License-Identifier: Apache-2.0
// JSON as our profiles have it: objects, arrays, texts, whole numbers, true, false, null.
#ifndef JSON_H
#define JSON_H

struct json {
    enum { JSON_NULL, JSON_FALSE, JSON_TRUE, JSON_NUMBER, JSON_TEXT, JSON_ARRAY, JSON_OBJECT } kind;
    char *key;                   // of a member of an object
    char *text;                  // of a text
    unsigned long long number;   // of a number; a negative one is its two's complement
    struct json *first, *next;   // the first element of an array or object; the next beside this
};

// The profile that $FIRSTLIGHT_MOCK_PROFILE names, else the host's own; NULL where there is none.
struct json *json_profile(void);

void json_free(struct json *value);

// A member of an object, NULL where it has none of this name or where `value` is no object.
const struct json *json_get(const struct json *value, const char *key);

// An element of an array, NULL where it has none.
const struct json *json_at(const struct json *value, unsigned index);

// How many elements an array has; of anything else 0.
unsigned json_length(const struct json *value);

// Whether this is a number; then it is put into `number`. true and false are 1 and 0.
int json_number(const struct json *value, unsigned long long *number);

// The text of a text; else NULL.
const char *json_text(const struct json *value);

#endif
