# shellcheck shell=bash
# Credentials, etcd, the API server and the controllers, all on node 1. Sourced by hack/cluster.

API=https://10.77.0.1:6443

kubectl() { KUBECONFIG=$STATE/admin.kubeconfig in_network 1 "$STATE/bin/kubectl" "$@"; }

# One token per component and node is the shortest sound set-up with Node,RBAC and NodeRestriction. The file is read once, so every
# node that may join later has its token from the beginning.
make_credentials() {
    local n
    mkdir -p "$STATE/pki"
    make_certificates
    : >"$STATE/pki/tokens.csv"
    chmod 600 "$STATE/pki/tokens.csv"
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
    (
        umask 077
        cat >"$1" <<CONFIG
apiVersion: v1
kind: Config
clusters: [{name: kubefledged, cluster: {server: "$API", certificate-authority-data: $(base64 -w 0 "$STATE/pki/ca.crt")}}]
users: [{name: $2, user: {token: $token}}]
contexts: [{name: kubefledged, context: {cluster: kubefledged, user: $2}}]
current-context: kubefledged
CONFIG
    )
}

make_certificates() (
    umask 077
    cd "$STATE/pki" || exit
    make_key ca
    openssl req -x509 -new -key ca.key -days 365 -subj /CN=kubefledged-ca -out ca.crt
    make_certificate apiserver /CN=kube-apiserver serverAuth "subjectAltName=IP:10.77.0.1,IP:10.96.0.1,IP:127.0.0.1,DNS:localhost,\
DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,DNS:kubernetes.default.svc.cluster.local"
    make_certificate kubelet-client /O=system:masters/CN=kube-apiserver clientAuth
    make_key service-accounts
    openssl pkey -in service-accounts.key -pubout -out service-accounts.pub
)

make_key() { openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$1.key" 2>/dev/null; }

# make_certificate NAME SUBJECT USAGE [EXTENSION]
make_certificate() {
    make_key "$1"
    openssl req -new -key "$1.key" -subj "$2" |
        openssl x509 -req -CA ca.crt -CAkey ca.key -CAcreateserial -days 365 -out "$1.crt" \
            -extfile <(printf 'extendedKeyUsage=%s\n%s\n' "$3" "${4:-}") 2>/dev/null
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
    retry 60 quietly kubectl get --raw /readyz || die "the API server does not start: see $STATE/nodes/n1/log/kube-apiserver.log"
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

# A pod created before its account exists is refused.
wait_for_service_accounts() {
    retry 30 quietly kubectl -n default get serviceaccount default ||
        die "the controller manager does not work: see $STATE/nodes/n1/log/kube-controller-manager.log"
}
