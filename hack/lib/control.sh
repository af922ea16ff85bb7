# shellcheck shell=bash
# Credentials, etcd, the API server and the controllers, all on node 1. Sourced by hack/cluster.

kubectl() { KUBECONFIG=$STATE/admin.kubeconfig in_network 1 "$STATE/bin/kubectl" "$@"; }

# One token per component and node is the shortest sound set-up with Node,RBAC and NodeRestriction. The file is read once, so every
# node that may join later has its token from the beginning.
make_credentials() {
    local n
    mkdir -p "$STATE/pki"
    make_certificates
    add_token admin admin system:masters
    add_token controller-manager system:kube-controller-manager ''
    add_token scheduler system:kube-scheduler ''
    add_token kube-proxy system:kube-proxy ''
    for ((n = 1; n <= MAX_NODES; n++)); do add_token "node-n$n" "system:node:n$n" system:nodes; done
    write_kubeconfig "$STATE/admin.kubeconfig" admin
    write_kubeconfig "$STATE/pki/controller-manager.kubeconfig" controller-manager
    write_kubeconfig "$STATE/pki/scheduler.kubeconfig" scheduler
}

# add_token NAME USER GROUP; NAME serves as the uid, and write_kubeconfig finds the token by it.
add_token() { echo "$(openssl rand -hex 16),$2,$1,\"$3\"" >>"$STATE/pki/tokens.csv"; }

# write_kubeconfig FILE NAME
write_kubeconfig() {
    local token
    token=$(awk -F , -v name="$2" '$3 == name {print $1}' "$STATE/pki/tokens.csv")
    configure kubeconfig.yaml USER="$2" TOKEN="$token" CA="$(base64 -w 0 "$STATE/pki/ca.crt")" >"$1"
}

make_certificates() (
    cd "$STATE/pki" || exit
    make_certificate ca /CN=kubefledged-ca basicConstraints=critical,CA:TRUE
    make_certificate apiserver /CN=kube-apiserver extendedKeyUsage=serverAuth -CA ca.crt -CAkey ca.key -addext "subjectAltName=\
IP:10.77.0.1,IP:10.96.0.1,IP:127.0.0.1,DNS:localhost,DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,\
DNS:kubernetes.default.svc.cluster.local"
    make_certificate kubelet-client /O=system:masters/CN=kube-apiserver extendedKeyUsage=clientAuth -CA ca.crt -CAkey ca.key
    openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out service-accounts.key
    openssl pkey -in service-accounts.key -pubout -out service-accounts.pub
)

# make_certificate NAME SUBJECT EXTENSION [OPTION...]
make_certificate() {
    quietly openssl req -config /dev/null -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 365 \
        -keyout "$1.key" -out "$1.crt" -subj "$2" -addext "$3" "${@:4}" || die "openssl makes no certificate of $1"
}

# --unsafe-no-fsync: the data is worth nothing after a crash, and a slow disk would make every write slow.
# --kubelet-preferred-address-types: no DNS knows the nodes' names.
start_apiserver() {
    local pki=$STATE/pki
    spawn 1 etcd etcd --data-dir="$STATE/nodes/n1/etcd" --unsafe-no-fsync --log-level=warn \
        --listen-client-urls=http://127.0.0.1:2379 --advertise-client-urls=http://127.0.0.1:2379 --listen-peer-urls=http://127.0.0.1:2380
    spawn 1 kube-apiserver kube-apiserver --etcd-servers=http://127.0.0.1:2379 \
        --advertise-address=10.77.0.1 --service-cluster-ip-range=10.96.0.0/16 --allow-privileged=true \
        --feature-gates=ImageVolume=true --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction --token-auth-file="$pki/tokens.csv" \
        --client-ca-file="$pki/ca.crt" --tls-cert-file="$pki/apiserver.crt" --tls-private-key-file="$pki/apiserver.key" \
        --kubelet-client-certificate="$pki/kubelet-client.crt" --kubelet-client-key="$pki/kubelet-client.key" \
        --kubelet-preferred-address-types=InternalIP \
        --service-account-issuer=https://kubernetes.default.svc.cluster.local \
        --service-account-key-file="$pki/service-accounts.pub" --service-account-signing-key-file="$pki/service-accounts.key"
}

wait_for_apiserver() {
    await 60 "the API server does not start" n1/kube-apiserver kubectl get --raw /readyz
    say "the API server is ready"
}

# A node without heartbeats is noticed after 20 s instead of 50: tests wait for it.
start_controllers() {
    local pki=$STATE/pki
    spawn 1 kube-controller-manager kube-controller-manager --kubeconfig="$pki/controller-manager.kubeconfig" --leader-elect=false \
        --use-service-account-credentials --service-account-private-key-file="$pki/service-accounts.key" --root-ca-file="$pki/ca.crt" \
        --cluster-signing-cert-file="$pki/ca.crt" --cluster-signing-key-file="$pki/ca.key" \
        --node-monitor-grace-period=20s --bind-address=127.0.0.1 --flex-volume-plugin-dir=/var/lib/kubelet/volume-plugins
    spawn 1 kube-scheduler kube-scheduler --kubeconfig="$pki/scheduler.kubeconfig" --leader-elect=false --bind-address=127.0.0.1
}
