#!/usr/bin/env bash
# Starts this specification's launcher below spark-submit: launch_ipykernel.py, launch_IRkernel.R or Toree's, whichever lies here.
#
#   SPARK_HOME               where Spark lies; where it is not set (or is /opt/spark, and nothing is there), that of the package pyspark
#   SPARK_OPTS               arguments of spark-submit
#   KERNEL_EXTRA_SPARK_OPTS  more of them, where SPARK_OPTS says ${KERNEL_EXTRA_SPARK_OPTS}
#   LAUNCH_OPTS              arguments of the launcher, before those of kernel.json
#   PYSPARK_PYTHON           the Python of the kernel and of the executors
#
# SPARK_OPTS and LAUNCH_OPTS are split as a shell does it, by blanks, '…', "…" and backslashes. Nothing in them is expanded but ${NAME} and
# ${NAME:-default}, outside of '…'; outside of quotes the value is split at blanks. This script's own arguments go on unchanged.
set -euo pipefail

main() {
    local here launcher
    here=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
    launcher=$(find_launcher "$here")
    find_spark
    [[ -n ${JAVA_HOME:-} || -n $(command -v java) ]] ||
        fail "Spark needs Java, and there is none on ${HOSTNAME:-this host}: set JAVA_HOME in kernel.json's env, or install a Java runtime."
    # A login that makes notebooks of `pyspark` would make one of this kernel.
    unset PYSPARK_DRIVER_PYTHON PYSPARK_DRIVER_PYTHON_OPTS
    local words=() submit=()
    split SPARK_OPTS "${SPARK_OPTS:-}"
    submit=(${words[@]+"${words[@]}"})
    if [[ $launcher == *.jar ]]; then
        add_toree "$here"
    elif [[ -f $SPARK_HOME/python/pyspark/__init__.py ]]; then
        add_to_pythonpath "$SPARK_HOME"/python "$SPARK_HOME"/python/lib/py4j-*-src.zip
    fi
    split LAUNCH_OPTS "${LAUNCH_OPTS:-}"
    exec "$SPARK_HOME/bin/spark-submit" ${submit[@]+"${submit[@]}"} "$launcher" ${words[@]+"${words[@]}"} "$@"
}

fail() {
    printf '%s\n' "$1" >&2
    exit 1
}

find_launcher() {
    local path
    for path in "$1"/scripts/launch_ipykernel.py "$1"/scripts/launch_IRkernel.R "$1"/lib/toree-launcher-*.jar; do
        if [[ -f $path ]]; then
            printf '%s\n' "$path"
            return
        fi
    done
    fail "There is no launcher in $1: install the kernel specification again."
}

find_spark() {
    local host=${HOSTNAME:-this host} python=${PYSPARK_PYTHON:-python3} found=''
    if [[ ! -f ${SPARK_HOME:-}/bin/spark-submit ]]; then
        [[ ${SPARK_HOME:-/opt/spark} == /opt/spark ]] ||
            fail "SPARK_HOME is $SPARK_HOME, and there is no bin/spark-submit in it on $host: correct it in kernel.json's env."
        found=$("$python" -c 'import sys
sys.path = [path for path in sys.path if path]
from importlib.util import find_spec
print((find_spec("pyspark").submodule_search_locations or [""])[0])' 2>/dev/null) || found=''
        [[ -f $found/bin/spark-submit ]] ||
            fail "There is no Spark on $host: neither in /opt/spark nor as the package pyspark of $python. Set SPARK_HOME, or install pyspark."
        SPARK_HOME=$found
    fi
    export SPARK_HOME
}

add_to_pythonpath() {
    local path
    for path in "$@"; do
        if [[ -e $path && :${PYTHONPATH:-}: != *":$path:"* ]]; then
            PYTHONPATH=${PYTHONPATH:+$PYTHONPATH:}$path
        fi
    done
    export PYTHONPATH
}

# Toree beside the jars that SPARK_OPTS names; and what Java 17 forbids Toree otherwise, so that no magic is missing.
add_toree() {
    local place jars assembly
    for assembly in "$1"/lib/toree-assembly-*.jar; do
        jars=$assembly
    done
    for ((place = 0; place < ${#submit[@]}; place++)); do
        case ${submit[place]} in
            --jars)
                submit[place + 1]=${submit[place + 1]:-}${submit[place + 1]:+,}$jars
                jars=''
                break
                ;;
            --jars=*)
                submit[place]=${submit[place]},$jars
                jars=''
                break
                ;;
            *) ;;
        esac
    done
    if [[ -n $jars ]]; then
        submit+=(--jars "$jars")
    fi
    export JDK_JAVA_OPTIONS="--add-opens=java.base/java.util.jar=ALL-UNNAMED${JDK_JAVA_OPTIONS:+ $JDK_JAVA_OPTIONS}"
}

# Splits $2, which is called $1 in messages, into the array `words`.
split() {
    local LC_ALL=C # a byte at a time, whatever the locale is
    local rest=$2 special=$' \t\n\'"$\\' word='' begun='' quoted='' inserted='' piece
    words=()
    while [[ -n $rest ]]; do
        piece=${rest%%["$special"]*}
        if [[ -n $piece ]]; then
            take "$piece" "${#piece}"
            continue
        fi
        case $rest in
            \'*) take_single_quoted "$1" "$2" ;;
            \"*)
                if [[ -n $quoted ]]; then quoted=''; else quoted=1; fi
                take '' 1
                ;;
            \\*) take_escaped "$1" "$2" ;;
            \$*) take_variable ;;
            *) take_blank ;;
        esac
    done
    [[ -z $quoted ]] || fail "$1 has a \" that is not closed: $2"
    end_word
}

# Adds $1 to the word, and goes $2 bytes on.
take() {
    word+=$1 begun=1 rest=${rest:$2}
}

end_word() {
    if [[ -n $begun ]]; then
        words+=("$word")
    fi
    word='' begun=''
}

take_blank() {
    if [[ -n $quoted ]]; then
        take "${rest:0:1}" 1
    else
        end_word
        rest=${rest:1}
    fi
}

take_single_quoted() {
    local inside=${rest:1}
    if [[ -n $quoted ]]; then
        take "'" 1
        return
    fi
    [[ $inside == *\'* ]] || fail "$1 has a ' that is not closed: $2"
    inside=${inside%%\'*}
    take "$inside" $((${#inside} + 2))
}

take_escaped() {
    local next=${rest:1:1}
    [[ -n $next ]] || fail "$1 ends with a backslash: $2"
    if [[ $next == $'\n' ]]; then
        rest=${rest:2} # a line that goes on
    elif [[ -n $quoted && $next != [\"\\\$\`] ]]; then
        take "\\$next" 2
    else
        take "$next" 2
    fi
}

take_variable() {
    local name value
    if [[ ! $rest =~ ^\$\{([A-Za-z_][A-Za-z0-9_]*)(:-([^}]*))?\} ]]; then
        take \$ 1
        return
    fi
    name=${BASH_REMATCH[1]} value=${BASH_REMATCH[3]:-} rest=${rest:${#BASH_REMATCH[0]}}
    value=${!name:-$value}
    if [[ -n $quoted ]]; then
        take "$value" 0
    elif [[ $name == KERNEL_EXTRA_SPARK_OPTS ]]; then
        # Options with quotes of their own; it would not end if they could name themselves.
        if [[ -z $inserted ]]; then
            rest=$value$rest inserted=1
        fi
    else
        take_fields "$value"
    fi
}

# The value $1 outside of quotes: its blanks separate words.
take_fields() {
    local value=$1 field
    while [[ -n $value ]]; do
        field=${value%%[$' \t\n']*}
        if [[ -n $field ]]; then
            take "$field" 0
        fi
        value=${value:${#field}}
        if [[ -n $value ]]; then
            end_word
            value=${value:1}
        fi
    done
}

main "$@"
