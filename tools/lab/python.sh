# To be sourced by what runs first on a machine: have the distribution's Python, with which all the rest is installed.
if [ ! -x /usr/bin/python3 ]; then
    command -v apt-get > /dev/null || { echo "this needs Debian 12: there is no apt-get here" >&2; exit 1; }
    become=()
    [ "$(id -u)" = 0 ] || become=(sudo --)
    echo "Installing python3"
    for words in "update" "install --no-install-recommends python3"; do
        # shellcheck disable=SC2086 -- these are words
        "${become[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -y -o Dpkg::Use-Pty=0 $words > /dev/null
    done
fi
