// SPDX-License-Identifier: Apache-2.0
#include "json.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DEFAULT_PROFILE "/etc/firstlight-mock/profile.json"
#define MAX_DEPTH 32

struct reader {
    const char *at;
    int depth;
};

static struct json *read_value(struct reader *reader);

static void skip_space(struct reader *reader) {
    reader->at += strspn(reader->at, " \t\r\n");
}

// Whether this is what comes next; then it is passed over.
static int take(struct reader *reader, const char *what) {
    skip_space(reader);
    size_t length = strlen(what);
    if (strncmp(reader->at, what, length) != 0) {
        return 0;
    }
    reader->at += length;
    return 1;
}

// The character of a \uXXXX as UTF-8. Pairs of surrogates become two characters of three bytes.
static char *put_escaped(char *out, const char *digits) {
    char four[5] = {0};
    unsigned code = (unsigned)strtoul(memcpy(four, digits, 4), NULL, 16);
    if (code < 0x80) {
        *out++ = (char)code;
    } else if (code < 0x800) {
        *out++ = (char)(0xC0 | code >> 6);
        *out++ = (char)(0x80 | (code & 0x3F));
    } else {
        *out++ = (char)(0xE0 | code >> 12);
        *out++ = (char)(0x80 | (code >> 6 & 0x3F));
        *out++ = (char)(0x80 | (code & 0x3F));
    }
    return out;
}

// A text in quotes, in memory of its own; NULL where there is none.
static char *read_text(struct reader *reader) {
    if (!take(reader, "\"")) {
        return NULL;
    }
    char *text = malloc(strlen(reader->at) + 1), *out = text;
    while (text && *reader->at && *reader->at != '"') {
        if (*reader->at != '\\') {
            *out++ = *reader->at++;
            continue;
        }
        static const char escaped[] = "\"\\/bfnrt", meant[] = "\"\\/\b\f\n\r\t";
        const char *known = reader->at[1] ? strchr(escaped, reader->at[1]) : NULL;
        if (known) {
            *out++ = meant[known - escaped];
            reader->at += 2;
        } else if (reader->at[1] == 'u' && strspn(reader->at + 2, "0123456789abcdefABCDEF") >= 4) {
            out = put_escaped(out, reader->at + 2);
            reader->at += 6;
        } else {
            break;
        }
    }
    if (!text || *reader->at != '"') {
        free(text);
        return NULL;
    }
    reader->at++;
    *out = '\0';
    return text;
}

// The elements of an array or object, up to its closing bracket; whether all was well.
static int read_elements(struct reader *reader, struct json *parent, const char *end) {
    struct json **place = &parent->first;
    if (take(reader, end)) {
        return 1;
    }
    do {
        char *key = NULL;
        if (parent->kind == JSON_OBJECT) {
            key = read_text(reader);
            if (!key || !take(reader, ":")) {
                free(key);
                return 0;
            }
        }
        *place = read_value(reader);
        if (!*place) {
            free(key);
            return 0;
        }
        (*place)->key = key;
        place = &(*place)->next;
    } while (take(reader, ","));
    return take(reader, end);
}

// A whole number; whether there is one. Fractions are not in our profiles.
static int read_number(struct reader *reader, struct json *value) {
    char *end;
    skip_space(reader);
    value->kind = JSON_NUMBER;
    value->number = strtoull(reader->at, &end, 10);
    if (end == reader->at || *end == '.' || *end == 'e' || *end == 'E') {
        return 0;
    }
    reader->at = end;
    return 1;
}

static int read_into(struct reader *reader, struct json *value) {
    static const char *const words[] = {"null", "false", "true"};
    for (int kind = JSON_NULL; kind <= JSON_TRUE; kind++) {
        if (take(reader, words[kind])) {
            value->kind = kind;
            return 1;
        }
    }
    if (take(reader, "{")) {
        value->kind = JSON_OBJECT;
        return read_elements(reader, value, "}");
    }
    if (take(reader, "[")) {
        value->kind = JSON_ARRAY;
        return read_elements(reader, value, "]");
    }
    if (*reader->at == '"') {
        value->kind = JSON_TEXT;
        value->text = read_text(reader);
        return value->text != NULL;
    }
    return read_number(reader, value);
}

static struct json *read_value(struct reader *reader) {
    struct json *value = calloc(1, sizeof *value);
    if (!value) {
        return NULL;
    }
    reader->depth++;
    if (reader->depth > MAX_DEPTH || !read_into(reader, value)) {
        json_free(value);
        return NULL;
    }
    reader->depth--;
    return value;
}

// A file's content with a NUL after it; NULL where it cannot be read.
static char *read_file(const char *path) {
    FILE *file = fopen(path, "rb");
    char *content = NULL;
    size_t length = 0, taken = 1;
    while (file && taken > 0) {
        char *longer = realloc(content, length + 65537);
        if (!longer) {
            break;
        }
        content = longer;
        taken = fread(content + length, 1, 65536, file);
        length += taken;
        content[length] = '\0';
    }
    if (file) {
        fclose(file);
    }
    return content;
}

struct json *json_profile(void) {
    const char *named = getenv("FIRSTLIGHT_MOCK_PROFILE");
    char *content = read_file(named ? named : DEFAULT_PROFILE);
    if (!content) {
        return NULL;
    }
    struct reader reader = {content, 0};
    struct json *profile = read_value(&reader);
    skip_space(&reader);
    if (profile && *reader.at) {
        json_free(profile);
        profile = NULL;
    }
    free(content);
    return profile;
}

void json_free(struct json *value) {
    while (value) {
        struct json *next = value->next;
        json_free(value->first);
        free(value->key);
        free(value->text);
        free(value);
        value = next;
    }
}

const struct json *json_get(const struct json *value, const char *key) {
    if (!value || value->kind != JSON_OBJECT) {
        return NULL;
    }
    for (const struct json *member = value->first; member; member = member->next) {
        if (strcmp(member->key, key) == 0) {
            return member;
        }
    }
    return NULL;
}

const struct json *json_at(const struct json *value, unsigned index) {
    if (!value || value->kind != JSON_ARRAY) {
        return NULL;
    }
    const struct json *element = value->first;
    while (element && index-- > 0) {
        element = element->next;
    }
    return element;
}

unsigned json_length(const struct json *value) {
    unsigned length = 0;
    while (json_at(value, length)) {
        length++;
    }
    return length;
}

int json_number(const struct json *value, unsigned long long *number) {
    if (!value || value->kind < JSON_FALSE || value->kind > JSON_NUMBER) {
        return 0;
    }
    *number = value->kind == JSON_NUMBER ? value->number : value->kind == JSON_TRUE;
    return 1;
}

const char *json_text(const struct json *value) {
    return value && value->kind == JSON_TEXT ? value->text : NULL;
}
